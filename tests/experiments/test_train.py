"""train.py as a person runs it: its files, its messages, its exit status."""

import json
import signal

import chex
import jax
import pytest
import train
from common import train_loop
from common.runs import Run, build

from tests.common.scripts import QUICK, assert_picture, call


def test_train(monkeypatch, tmp_path, capsys):
    assert call(train, monkeypatch, *QUICK, "--rule", "sltt_k", "--k", 2, "--workdir", tmp_path) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    expected = {
        "preset": "digits_mlp", "rule": "sltt_k(2)", "T": 3, "seed": 0,
        "epochs": 2, "status": "finished", "parameters": 64 * 16 + 16 + 16 * 10 + 10,
        "device": jax.devices()[0].device_kind,
    }  # fmt: skip
    assert {k: summary[k] for k in expected} == expected
    for name in (
        "temp_bytes",
        "flops_per_update",
        "seconds_per_update",
        "compile_seconds",
        "best_test_accuracy",
    ):
        assert summary[name] > 0
    assert summary["flops_per_update"] == pytest.approx(2 * 64 * (3 * (1024 + 160) + 2 * (1024 + 2 * 160)))
    assert len(summary["test_accuracy_per_step"]) == 3 and 0 <= summary["test_accuracy"] <= 1
    assert set(summary["firing_rates"]) == {"LIF_0"} and 0 < summary["firing_rates"]["LIF_0"] < 1
    assert summary["versions"]["jax"] == jax.__version__
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert summary["test_accuracy"] == lines[-1]["test_accuracy"]
    assert summary["best_test_accuracy"] == max(line["test_accuracy"] for line in lines)
    assert_picture(tmp_path / "curves.png")
    out = capsys.readouterr()
    for words in ("test accuracy", "memory of an update", "time of an update", str(tmp_path)):
        assert words in out.out
    assert "epoch 2  loss" in out.err  # the progress bar

    # Once more: resumed (nothing is left to do), refused with other settings, started anew with them.
    same = (*QUICK, "--workdir", tmp_path)
    for resume in ((), ("--resume",)):
        assert call(train, monkeypatch, *same, *resume) == 0
        again = json.loads((tmp_path / "summary.json").read_text())
        for name in ("test_accuracy", "parameters_sha256", "seconds"):
            assert again[name] == summary[name]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    capsys.readouterr()
    assert call(train, monkeypatch, *same, "--lr", 0.5) == 1
    err = capsys.readouterr().err
    assert "holds a run of other settings" in err and "lr: 0.002 in the workdir, 0.5 now" in err
    assert call(train, monkeypatch, *same, "--lr", 0.005, "--overwrite") == 0
    other = json.loads((tmp_path / "summary.json").read_text())
    assert other["parameters_sha256"] != summary["parameters_sha256"] and other["epochs"] == 2


@pytest.mark.slow
def test_selection_on_validation_samples(monkeypatch, tmp_path, capsys):
    args = (*QUICK, "--epochs", 4, "--lr", 0.02, "--workdir", tmp_path, "--tensorboard")
    assert call(train, monkeypatch, *args, "--validation", 0.25, "--select", "validation") == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    best = max(lines, key=lambda line: (line["validation_accuracy"], line["epoch"]))
    assert summary["selected_epoch"] == best["epoch"] and summary["select"] == "validation"
    assert summary["test_accuracy"] == best["test_accuracy"]
    assert summary["last_test_accuracy"] == lines[-1]["test_accuracy"]
    assert "best on the validation samples" in capsys.readouterr().out
    # 240 training samples less 60, in batches of 64: two updates and an evaluation an epoch.
    kept = {int(p.name) for p in (tmp_path / "checkpoints").iterdir()}
    assert kept == {9, 12, 3 * best["epoch"]}
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


@pytest.mark.slow
def test_starting_from_another_run(digits_run, monkeypatch, tmp_path, capsys):
    still = (*QUICK, "--epochs", 1, "--lr", 1e-12)
    second = (*still, "--init-from", digits_run, "--workdir", tmp_path / "second")
    assert call(train, monkeypatch, *second) == 0
    experiment = build(Run.of("digits_mlp", features=(16,), epochs=1))
    first, second = (experiment.load(folder).params for folder in (digits_run, tmp_path / "second"))
    fresh = experiment.initial_state(jax.random.key(experiment.run.seed)).params
    chex.assert_trees_all_close(first, second, rtol=0, atol=1e-9)
    distances = jax.tree.map(lambda a, b: float(abs(a - b).max()), first, fresh)
    assert min(distances["Dense_0"].values()) > 1e-3
    capsys.readouterr()
    wrong = (*still, "--features", 5, "--init-from", digits_run, "--workdir", tmp_path / "wrong")
    assert call(train, monkeypatch, *wrong) == 1
    assert "does not fit" in capsys.readouterr().err
    missing = (*still, "--init-from", tmp_path / "nothing", "--workdir", tmp_path / "missing")
    assert call(train, monkeypatch, *missing) == 1
    assert "init_from: there is no" in capsys.readouterr().err


def test_unwritable_workdir(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("not a directory")
    assert call(train, monkeypatch, *QUICK, "--workdir", tmp_path / "file" / "run") == 1
    err = capsys.readouterr().err
    assert err.startswith("error:") and str(tmp_path / "file") in err


@pytest.mark.slow
def test_divergence(monkeypatch, tmp_path, capsys):
    args = (*QUICK, "--optimizer", "sgd", "--lr", 1e30, "--workdir", tmp_path)
    assert call(train, monkeypatch, *args) == 1
    err = capsys.readouterr().err
    assert "error: " in err and "training stopped, and the last good state is kept" in err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "diverged" and "test_accuracy" not in summary


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_stopped_by_a_signal_and_resumed(digits_run, monkeypatch, tmp_path, capsys, number):
    def asked_in_the_second_epoch(*args, **kwargs):
        for record in train_epochs(*args, **kwargs):
            yield record
            signal.raise_signal(number)

    before = signal.getsignal(number)
    train_epochs = train_loop.training.train_epochs
    monkeypatch.setattr(train_loop.training, "train_epochs", asked_in_the_second_epoch)
    assert call(train, monkeypatch, *QUICK, "--workdir", tmp_path / "parts") == 128 + number
    assert f"stopped by {number.name}; the same command resumes it" in capsys.readouterr().err
    summary = json.loads((tmp_path / "parts" / "summary.json").read_text())
    assert summary["status"] == "stopped" and summary["epochs"] == 1 and summary["test_accuracy"] > 0
    # Three updates and an evaluation an epoch; the request is obeyed after the first update of the second.
    assert (tmp_path / "parts" / "checkpoints" / "5").is_dir()
    assert signal.getsignal(number) == before
    monkeypatch.setattr(train_loop.training, "train_epochs", train_epochs)
    assert call(train, monkeypatch, *QUICK, "--workdir", tmp_path / "parts") == 0
    folders = digits_run, tmp_path / "parts"
    whole, parts = (json.loads((folder / "summary.json").read_text()) for folder in folders)
    assert parts["status"] == "finished"
    for name in ("epochs", "parameters_sha256", "train_loss", "test_loss"):
        assert parts[name] == whole[name]
