"""The experiments that are made of many runs, on a few samples."""

import json
import subprocess
import sys

import ablation
import frontier
import jax
import k_tradeoff
import precision
import pytest
import scaling
from common import sweeps

from tests.common.scripts import assert_picture, assert_refused, call

pytestmark = pytest.mark.usefixtures("quick_compile")

QUICK = ("digits_mlp", "--features", 8, "--T", 2, "--epochs", 1, "--train-samples", 128, "--test-samples", 64)


@pytest.mark.slow
def test_k_tradeoff(monkeypatch, tmp_path, capsys):
    args = (*QUICK, "--K", 1, "--seeds", 2, "--workdir", tmp_path)
    assert call(k_tradeoff, monkeypatch, *args) == 0
    rows = {row["rule"]: row for row in json.loads((tmp_path / "k_tradeoff.json").read_text())["rows"]}
    assert list(rows) == k_tradeoff.compared_rules(2, (1,))
    assert (tmp_path / "k_tradeoff.md").read_text() in capsys.readouterr().out
    assert_picture(tmp_path / "k_tradeoff.png")
    # Two forward passes and one backward pass, in place of two: (2 + 2) / (2 + 4), less the input's gradient.
    assert 0.6 < rows["sltt_k(1, draw=last)"]["flops_per_update"] / rows["sltt"]["flops_per_update"] < 0.8
    ends = {name: summary(tmp_path / name / "0")["parameters_sha256"] for name in rows}
    # With T=2 a stride takes the last step too; all else differs.
    assert ends["sltt_k(1, draw=strided)"] == ends["sltt_k(1, draw=last)"]
    assert len(set(ends.values())) == len(rows) - 1, "two variants were trained alike"
    assert ends["sltt"] != summary(tmp_path / "sltt" / "1")["parameters_sha256"]

    # Once more: nothing is trained again.
    monkeypatch.setattr(sweeps, "train", None)
    assert call(k_tradeoff, monkeypatch, *args) == 0
    assert call(k_tradeoff, monkeypatch, *args, "--lr", 0.5) == 1
    assert "holds a run of other settings" in capsys.readouterr().err


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


@pytest.mark.slow
def test_frontier(monkeypatch, tmp_path, capsys):
    few = ("--train-samples", 32, "--test-samples", 16, "--epochs", 1, "--T", 12, "--seeds", 2)
    names = "bptt", "bptt(T, bits=True)", "ottt(0.9, chunk=4)", "sltt(4)", "sltt_k(1)"
    rules = "--rules", *names, "--lrs", 0.01, 0.01, 0.003, 0.003, 0.003
    args = ("qtdb", "--reduced", "--made", *few, *rules, "--workdir", tmp_path)
    assert call(frontier, monkeypatch, *args) == 0
    rows = json.loads((tmp_path / "frontier.json").read_text())["rows"]
    exact, bits, online, spatial, drawn = rows
    assert [(row["rule"], row["lr"]) for row in rows] == [
        ("bptt", 0.01), ("bptt(12, bits=True)", 0.01), ("ottt(0.9, chunk=4)", 0.003), ("sltt(4)", 0.003),
        ("sltt_k(1)", 0.003),
    ]  # fmt: skip
    assert exact["temp_bytes"] > spatial["temp_bytes"] > 0
    assert exact["cosine"][0] == pytest.approx(1, abs=1e-5) == bits["cosine"][0]
    assert max(row["cosine"][0] for row in (online, spatial, drawn)) < 0.999
    assert bits["test_accuracy"] == exact["test_accuracy"]
    assert (tmp_path / "frontier.md").read_text() in capsys.readouterr().out
    assert_picture(tmp_path / "frontier.png")
    ends = {summary(tmp_path / row["rule"] / "0")["parameters_sha256"] for row in (exact, online, spatial)}
    assert len(ends) == 3


def test_learning_rates_are_one_for_each_rule():
    with pytest.raises(ValueError, match=r"lrs must be one for each of 2 rules, got \(0.1,\)"):
        frontier.Frontier.of("qtdb", rules=("bptt", "sltt"), lrs=(0.1,))


@pytest.mark.slow
def test_ablation(monkeypatch, tmp_path, capsys):
    args = (*QUICK, "--surrogates", "triangle", "--taus", 1.1, 5, "--steps", 1, 3, "--seeds", 1)
    assert call(ablation, monkeypatch, *args, "--workdir", tmp_path) == 0
    rows = json.loads((tmp_path / "ablation.json").read_text())["rows"]
    assert [(r["tau"], r["T"], r["rule"]) for r in rows] == [
        (tau, T, rule) for tau in (1.1, 5.0) for T in (1, 3) for rule in ("bptt", "sltt")
    ]
    cosines = {(r["tau"], r["T"]): r["cosine"][0] for r in rows if r["rule"] == "sltt"}
    assert cosines[1.1, 1] == pytest.approx(1, abs=1e-5) and cosines[5.0, 1] == pytest.approx(1, abs=1e-5)
    assert cosines[5.0, 3] < cosines[1.1, 3] < 1 - 1e-5
    assert (tmp_path / "ablation.md").read_text() in capsys.readouterr().out
    assert_picture(tmp_path / "ablation.png")


@pytest.mark.slow
def test_precision(monkeypatch, tmp_path, capsys):
    args = (*QUICK, "--precisions", "float32", "float16", "--seeds", 2, "--workdir", tmp_path)
    assert call(precision, monkeypatch, *args) == 0
    single, half = json.loads((tmp_path / "precision.json").read_text())["rows"]
    assert (single["precision"], half["precision"]) == ("float32", "float16")
    assert 0 < abs(single["train_loss"][0] - half["train_loss"][0]) < 0.1
    assert summary(tmp_path / "float16" / "1")["precision"] == "float16"
    assert (tmp_path / "precision.md").read_text() in capsys.readouterr().out


@pytest.mark.slow
def test_scaling(tmp_path):
    """In a process of its own, since it says how many devices JAX is to simulate."""
    args = (*QUICK, "--batch-size", 16, "--counts", 1, 3, "--repeats", 2, "--workdir", tmp_path / "run")
    command = [sys.executable, *map(str, (scaling.__file__, *args))]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = json.loads((tmp_path / "run" / "scaling.json").read_text())["rows"]
    assert [(row["devices"], row["samples"]) for row in rows] == [(1, 16), (3, 48)]
    assert all(row[name] > 0 for row in rows for name in ("share", "whole", "sharded"))
    assert (tmp_path / "run" / "scaling.md").read_text() in out


@pytest.fixture
def untrained(monkeypatch):
    """Made-up summaries in place of the training: the accuracy is the number of the run. Returns the runs."""
    runs = []

    def trained(run):
        runs.append(run)
        n = len(runs)
        return {"test_accuracy": n / 100, "train_loss": 1 / n, "seconds_per_update": n / 1000,
                "flops_per_update": 1e9 * n, "temp_bytes": n * 2**20}  # fmt: skip

    monkeypatch.setattr(sweeps, "trained", trained)
    return runs


def test_variants_and_table_of_k_tradeoff(untrained, monkeypatch, tmp_path, capsys):
    assert call(k_tradeoff, monkeypatch, *QUICK, "--K", 2, 1, 3, "--seeds", 2, "--workdir", tmp_path) == 0
    rules = ["bptt", "sltt"]
    for k in (2, 1):
        rules += [f"sltt_k({k}{how})" for how in ("", ", draw=strided", ", draw=first", ", draw=last")]
        rules.append(f"sltt_k({k}, scale=unbiased)")
    assert [run.rule for run in untrained] == [rule for rule in rules for _ in range(2)]
    assert [run.seed for run in untrained[:2]] == [0, 1]
    assert untrained[3].workdir == tmp_path / "sltt" / "1"
    table = (tmp_path / "k_tradeoff.md").read_text()
    assert table in capsys.readouterr().out
    # Seeds 5 and 6 of all; sltt had 3 and 4.
    assert "| sltt_k(2) | 5.50 +- 0.50 | 5.5 ms (1.57) | 5.000 (1.67) |" in table
    assert_picture(tmp_path / "k_tradeoff.png")


def test_variants_and_table_of_ablation(untrained, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ablation, "cosine_with_bptt", lambda run: run.tau / 10)
    args = ("--surrogates", "triangle", "atan", "--taus", 2, "--steps", 2, 3, "--seeds", 1)
    assert call(ablation, monkeypatch, *QUICK, *args, "--workdir", tmp_path) == 0
    found = [(run.surrogate, run.tau, run.T, run.rule) for run in untrained]
    assert found == [
        (surrogate, 2.0, T, rule)
        for surrogate in ("triangle", "atan") for T in (2, 3) for rule in ("bptt", "sltt")
    ]  # fmt: skip
    table = (tmp_path / "ablation.md").read_text()
    assert table in capsys.readouterr().out
    assert "| triangle | 2 | 3 | 3.00 +- 0.00 | 4.00 +- 0.00 | 0.200 +- 0.000 |" in table
    assert_picture(tmp_path / "ablation.png")


def test_table_of_precision(untrained, monkeypatch, tmp_path, capsys):
    args = (*QUICK, "--precisions", "float32", "float16", "--seeds", 1, "--workdir", tmp_path)
    assert call(precision, monkeypatch, *args) == 0
    assert [run.precision for run in untrained] == ["float32", "float16"]
    table = (tmp_path / "precision.md").read_text()
    assert table in capsys.readouterr().out
    assert "| float16 | 2.00 +- 0.00 | 0.5000 +- 0.0000 | 2.00 MiB | 2.0 ms |" in table


def test_table_of_scaling(monkeypatch, tmp_path, capsys):
    seconds = {"share": 0.1, "whole": 0.2, "sharded": 0.3}
    monkeypatch.setattr(scaling, "measure", lambda run, n: {"devices": n, "samples": 16 * n, **seconds})
    monkeypatch.setattr(jax.config, "update", lambda *setting: None)  # the tests have their devices already
    args = (*QUICK, "--batch-size", 16, "--counts", 1, 3, "--workdir", tmp_path)
    assert call(scaling, monkeypatch, *args) == 0
    table = (tmp_path / "scaling.md").read_text()
    assert table in capsys.readouterr().out
    assert table.splitlines()[3] == "| 3 | 48 | 100.0 ms | 200.0 ms | 300.0 ms | 1.50 | 160 |"


def test_the_workdir_of_scaling_is_made_before_anything_is_measured(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(scaling, "measure", None)
    assert call(scaling, monkeypatch, *QUICK, "--workdir", tmp_path / "file") == 1
    err = capsys.readouterr().err
    assert "error: " in err and str(tmp_path / "file") in err and (tmp_path / "file").read_text() == "mine"


def test_what_a_sweep_would_meet_later_is_said_before_it_trains(untrained, monkeypatch, tmp_path, capsys):
    last = tmp_path / "sltt_k(1, scale=unbiased)" / "1"
    last.mkdir(parents=True)
    (last / "metrics.jsonl").write_text("{}\n")
    args = (*QUICK, "--K", 1, "--seeds", 2, "--workdir", tmp_path)
    assert call(k_tradeoff, monkeypatch, *args) == 1 and untrained == []
    assert f"{last} has metrics.jsonl, but no config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "args", "message"),
    [
        (k_tradeoff, ("--K", 0), "K must be numbers >= 1, got (0,)"),
        (k_tradeoff, ("--K", 3, 9), "K must have a number that is at most T=2, got (3, 9)"),
        (ablation, ("--taus", 5, 0.5), "tau must be >= 1 (in time steps), got 0.5"),
        (k_tradeoff, ("--seeds", 0), "seeds must be >= 1, got 0"),
        (ablation, ("--surrogates", "relu"), "surrogates must be of triangle"),
        (precision, ("--seeds", 0), "seeds must be >= 1, got 0"),
        (scaling, ("--counts", 0), "counts must be numbers in 1..1024, got (0,)"),
        (scaling, ("--repeats", 0), "repeats must be >= 1, got 0"),
    ],
)
def test_bad_settings(module, args, message, monkeypatch, tmp_path, capsys):
    assert_refused(module, (*QUICK, *args), message, tmp_path / "run", monkeypatch, capsys)
