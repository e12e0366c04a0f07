"""The scripts as a person runs them: their files, their messages, their exit status."""

import dataclasses
import json
import re
import signal

import compare_rules
from common import configs
import cost
from common import data_sets
import evaluate
import jax
import pytest
import train
from tests.common.scripts import call

from sltt_jax import data, training


@pytest.fixture
def small(monkeypatch):
    """A sixth of the digits, so that an epoch is a few updates."""
    digits = data.load_digits()
    part = dataclasses.replace(
        digits, train_x=digits.train_x[:240], train_y=digits.train_y[:240],
        test_x=digits.test_x[:60], test_y=digits.test_y[:60],
    )  # fmt: skip
    monkeypatch.setattr(data, "load_digits", lambda: part)


def unboxed(text):
    """Without the box and the line breaks that tyro puts around a message."""
    return " ".join(re.sub(r"[^\x20-\x7e]", " ", text).split())


QUICK = ("digits_mlp", "--features", 16, "--T", 3, "--epochs", 2)


def test_train(small, monkeypatch, tmp_path, capsys):
    assert call(train, monkeypatch, *QUICK, "--rule", "sltt_k", "--k", 1, "--workdir", tmp_path) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    expected = {
        "preset": "digits_mlp", "rule": "sltt_k", "T": 3, "k": 1, "chunk": None, "window": None, "seed": 0,
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
    assert summary["flops_per_update"] == pytest.approx(2 * 64 * (3 * (1024 + 160) + 1024 + 2 * 160))
    assert len(summary["test_accuracy_per_step"]) == 3 and 0 <= summary["test_accuracy"] <= 1
    assert set(summary["firing_rates"]) == {"LIF_0"} and 0 < summary["firing_rates"]["LIF_0"] < 1
    assert summary["versions"]["jax"] == jax.__version__
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert summary["test_accuracy"] == lines[-1]["test_accuracy"]
    assert summary["best_test_accuracy"] == max(line["test_accuracy"] for line in lines)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr()
    for words in ("test accuracy", "memory of an update", "time of an update", str(tmp_path)):
        assert words in out.out
    assert "epoch 2  loss" in out.err  # the progress bar

    # Once more: gone on with (nothing is left to do), refused with other settings, started anew with them.
    same = (*QUICK, "--rule", "sltt_k", "--k", 1, "--workdir", tmp_path)
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


def test_selection_on_validation_samples(small, monkeypatch, tmp_path, capsys):
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


def test_validation_samples_are_not_trained_on():
    kept, held = data_sets.split_indices(50, 0.2, seed=3)
    assert len(held) == 10 and sorted([*kept, *held]) == list(range(50))
    assert held.tolist() != list(range(10)) and len(data_sets.split_indices(50, 0.0, seed=3)[1]) == 0
    other = data_sets.split_indices(50, 0.2, seed=4)[1]
    assert held.tolist() != other.tolist()


def test_starting_from_another_run(small, monkeypatch, tmp_path, capsys):
    net = ("digits", "--features", 4, "--epochs", 1)
    assert call(train, monkeypatch, *net, "--T", 1, "--workdir", tmp_path / "first") == 0
    first = json.loads((tmp_path / "first" / "summary.json").read_text())
    second = (*net, "--T", 2, "--lr", 1e-12, "--init-from", tmp_path / "first")
    assert call(train, monkeypatch, *second, "--workdir", tmp_path / "second") == 0
    fresh = (*net, "--T", 2, "--lr", 1e-12, "--workdir", tmp_path / "fresh")
    assert call(train, monkeypatch, *fresh) == 0
    parts = {
        name: next(iter((tmp_path / name / "checkpoints").glob("[1-9]*")))
        for name in ("first", "second", "fresh")
    }
    experiment = train.build(train.Run(**{**vars(configs.digits()), "features": (4,), "epochs": 1}))
    like = {"params": jax.eval_shape(experiment.initial_state, jax.random.key(0)).params}
    params = {name: jax.tree.leaves(training.load_parts(path, like)) for name, path in parts.items()}
    distance = lambda a, b: max(float(abs(x - y).max()) for x, y in zip(params[a], params[b], strict=True))
    assert distance("first", "second") < 1e-9 and distance("first", "fresh") > 0.01
    capsys.readouterr()
    wrong = ("digits", "--features", 5, "--epochs", 1, "--init-from", tmp_path / "first")
    assert call(train, monkeypatch, *wrong, "--workdir", tmp_path / "wrong") == 1
    assert "does not fit" in capsys.readouterr().err and first["epochs"] == 1
    missing = (*net, "--init-from", tmp_path / "nothing", "--workdir", tmp_path / "missing")
    assert call(train, monkeypatch, *missing) == 1
    assert "init_from: there is no" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("digits", "--T", 0), "T must be >= 1, got 0"),
        (("digits", "--rule", "sltt_k", "--k", 7), "k=7 is more than the T=6 time steps"),
        (("digits", "--rule", "tbptt", "--window", 7), "window=7 is more than the T=6"),
        (("digits", "--rule", "sltt", "--chunk", 9), "chunk=9 is more than the T=6"),
        (("digits", "--batch-size", 5000), "batch_size must be in 1..240, the number of samples, got 5000"),
        (("digits", "--tau", 0.5), "tau must be >= 1 (in time steps), got 0.5"),
        (("digits", "--lr", -1), "lr must be > 0, got -1"),
        (("digits", "--dropout", 1), "dropout must be in 0..1, got 1"),
        (("digits", "--resume"), "holds no run to resume"),
        (("digits", "--resume", "--overwrite"), "resume and overwrite exclude each other"),
        (("digits", "--devices", 99), "devices must be in 1.."),
        (("digits", "--validation", 1.5), "validation must be in 0..1, got 1.5"),
        (("digits", "--select", "validation"), "needs a share of the training samples"),
        (("digits", "--preprocessing", "paper"), "preprocessing=paper is for dvs_cifar10"),
        (("digits_mlp", "--chunk", "auto", "--rule", "bptt"), "chunk=auto is for sltt, got rule bptt"),
        (("digits_mlp", "--chunk", "auto", "--gigabytes", 1e-6), "more than the 1e-06 GB given"),
        (("digits_mlp", "--sync-batch-stats"), "mlp has no batch statistics"),
        (("digits", "--num-processes", 2), "need all of --coordinator"),
        (("digits", "--coordinator", "host:1"), "need all of --coordinator"),
    ],
)
def test_bad_settings_are_said_before_anything_is_written(
    small, monkeypatch, tmp_path, capsys, args, message
):
    workdir = tmp_path / "run"
    assert call(train, monkeypatch, *args, "--workdir", workdir) in (1, 2)
    assert message in unboxed(capsys.readouterr().err)
    assert not workdir.exists()


def test_unknown_names_are_answered_with_the_known_ones(monkeypatch, capsys):
    for args, known in (
        (("digit",), configs.PRESETS),
        (("digits", "--rule", "stlt"), ("bptt", "tbptt", "sltt", "sltt_k")),
        (("digits", "--surrogate", "relu"), ("triangle", "rectangle", "sigmoid", "atan", "fast_sigmoid")),
    ):
        assert call(train, monkeypatch, *args) == 2
        err = unboxed(capsys.readouterr().err)
        assert all(name in err for name in known), err


def test_unwritable_workdir(small, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("not a directory")
    assert call(train, monkeypatch, *QUICK, "--workdir", tmp_path / "file" / "run") == 1
    err = capsys.readouterr().err
    assert err.startswith("error:") and str(tmp_path / "file") in err


def test_divergence(small, monkeypatch, tmp_path, capsys):
    args = ("digits", "--features", 4, "--T", 2, "--lr", 1e30, "--epochs", 2, "--workdir", tmp_path)
    assert call(train, monkeypatch, *args) == 1
    err = capsys.readouterr().err
    assert "error: " in err and "training stopped, and the last good state is kept" in err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "diverged" and "test_accuracy" not in summary


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_a_signal_and_gone_on_with(small, monkeypatch, tmp_path, capsys, number):
    def asked_in_the_second_epoch(*args, **kwargs):
        for record in train_epochs(*args, **kwargs):
            yield record
            signal.raise_signal(number)

    before = signal.getsignal(number)
    assert call(train, monkeypatch, *QUICK, "--workdir", tmp_path / "whole") == 0
    train_epochs = train.training.train_epochs
    monkeypatch.setattr(train.training, "train_epochs", asked_in_the_second_epoch)
    assert call(train, monkeypatch, *QUICK, "--workdir", tmp_path / "parts") == 128 + number
    assert f"stopped by {number.name}; the same command goes on" in capsys.readouterr().err
    summary = json.loads((tmp_path / "parts" / "summary.json").read_text())
    assert summary["status"] == "stopped" and summary["epochs"] == 1 and summary["test_accuracy"] > 0
    # Three updates and an evaluation an epoch; the request is obeyed after the first update of the second.
    assert (tmp_path / "parts" / "checkpoints" / "5").is_dir()
    assert signal.getsignal(number) == before
    monkeypatch.setattr(train.training, "train_epochs", train_epochs)
    assert call(train, monkeypatch, *QUICK, "--workdir", tmp_path / "parts") == 0
    whole, parts = (json.loads((tmp_path / n / "summary.json").read_text()) for n in ("whole", "parts"))
    assert parts["status"] == "finished"
    for name in ("epochs", "parameters_sha256", "train_loss", "test_loss"):
        assert parts[name] == whole[name]


@pytest.mark.slow
def test_compare_rules(small, monkeypatch, tmp_path, capsys):
    assert call(compare_rules, monkeypatch, *QUICK, "--lr", 0.05, "--workdir", tmp_path) == 0
    rows = json.loads((tmp_path / "table.json").read_text())
    assert list(rows) == ["bptt", "tbptt(2)", "sltt", "sltt(chunk=3)", "sltt_k(1)", "sltt_k(2)"]
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    lines = [line.split(" | ") for line in table.splitlines()[2:]]
    assert all("(1.00)" in cell for cell in lines[0][2:]) and len(lines) == 6
    assert rows["sltt_k(1)"]["flops_per_update"] < rows["sltt_k(2)"]["flops_per_update"]
    assert rows["sltt_k(2)"]["flops_per_update"] < rows["sltt"]["flops_per_update"]
    # The same start: the rules have the same parameters before their first update, and the same data order.
    losses = {name: row["train_loss"] for name, row in rows.items()}
    rounding = abs(losses["sltt"] - losses["sltt(chunk=3)"])
    assert rounding < 1e-5 and abs(losses["sltt"] - losses["sltt_k(1)"]) > max(1e-5, 5 * rounding)


def test_cost(monkeypatch, tmp_path, capsys):
    args = ("digits_mlp", "--T", 2, 32, "--batch", 16, "--workdir", tmp_path)
    assert call(cost, monkeypatch, *args) == 0
    rules = json.loads((tmp_path / "cost.json").read_text())["rules"]
    assert list(rules) == ["bptt", "tbptt(4)", "sltt", "sltt(chunk=4)", "sltt_k(1)"]
    assert [p["T"] for p in rules["bptt"]] == [2, 32] and [p["T"] for p in rules["tbptt(4)"]] == [32]
    assert rules["bptt"][1]["temp_bytes"] > 2 * rules["bptt"][0]["temp_bytes"]
    assert rules["sltt"][1]["temp_bytes"] < 1.01 * rules["sltt"][0]["temp_bytes"]
    assert rules["sltt"][1]["total_bytes"] > rules["sltt"][1]["temp_bytes"]
    assert (tmp_path / "cost.md").read_text() in capsys.readouterr().out
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_unknown_data_set(monkeypatch, tmp_path, capsys):
    assert call(train, monkeypatch, "digits", "--data", "digit", "--workdir", tmp_path / "run") == 1
    assert "unknown data set 'digit'; there are digits, mnist" in capsys.readouterr().err


def test_evaluate_at_other_numbers_of_steps(small, monkeypatch, tmp_path, capsys):
    assert call(train, monkeypatch, *QUICK, "--workdir", tmp_path) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    capsys.readouterr()
    assert call(evaluate, monkeypatch, tmp_path, "--T", 1, 3, 5) == 0
    rows = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    assert [row["T"] for row in rows] == [1, 3, 5]
    assert [len(row["test"]["accuracy_per_step"]) for row in rows] == [1, 3, 5]
    # As at the end of training, which the first steps of a longer run repeat.
    assert rows[1]["test"]["accuracy_per_step"] == summary["test_accuracy_per_step"]
    assert rows[2]["test"]["accuracy_per_step"][:3] == summary["test_accuracy_per_step"]
    assert rows[1]["test"]["loss"] == pytest.approx(summary["test_loss"], rel=1e-6)
    assert f"T=3    test {summary['test_accuracy']:.4f}" in capsys.readouterr().out
    first = tmp_path / "checkpoints" / "4"  # after the first epoch: three updates and an evaluation
    assert call(evaluate, monkeypatch, first) == 0
    earlier = json.loads((tmp_path / "evaluation.json").read_text())["rows"][0]["test"]["loss"]
    assert earlier == pytest.approx(training.read_metrics(tmp_path)[0]["test_loss"], rel=1e-6)
    for args, message in (
        ((tmp_path / "no",), "holds no run"),
        ((tmp_path, "--best"), "no checkpoint with a score"),
        ((tmp_path / "checkpoints" / "5",), "no such checkpoint"),
    ):
        assert call(evaluate, monkeypatch, *args) == 1
        assert message in capsys.readouterr().err
