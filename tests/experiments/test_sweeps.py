"""The experiments that are made of many runs, on a few samples."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ablation
import k_tradeoff
import precision
import pytest
import scaling
from common import sweeps
from tests.common.scripts import call

QUICK = ("digits_mlp", "--features", 8, "--T", 2, "--epochs", 1, "--train-samples", 128, "--test-samples", 64)


@pytest.mark.slow
def test_k_tradeoff(monkeypatch, tmp_path, capsys):
    args = (*QUICK, "--K", 1, "--seeds", 2, "--workdir", tmp_path)
    assert call(k_tradeoff, monkeypatch, *args) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "k_tradeoff.json").read_text())["rows"]}
    draws = [f"sltt_k(1, {how})" for how in ("uniform", "strided", "first", "last", "unbiased")]
    assert list(rows) == ["bptt", "sltt", *draws]
    assert (tmp_path / "k_tradeoff.md").read_text() in capsys.readouterr().out
    assert (tmp_path / "k_tradeoff.png").read_bytes().startswith(b"\x89PNG")
    # Two forward passes and one backward pass, in place of two: (2 + 2) / (2 + 4), less the input's gradient.
    assert 0.6 < rows["sltt_k(1, last)"]["flops_per_update"] / rows["sltt"]["flops_per_update"] < 0.8
    ends = {name: summary(tmp_path / name / "0")["parameters_sha256"] for name in rows}
    # With T=2 a stride takes the last step too; all else differs.
    assert ends["sltt_k(1, strided)"] == ends["sltt_k(1, last)"]
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
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_precision(monkeypatch, tmp_path, capsys):
    args = (*QUICK, "--precisions", "float32", "float16", "--seeds", 2, "--workdir", tmp_path)
    assert call(precision, monkeypatch, *args) == 0
    single, half = json.loads((tmp_path / "precision.json").read_text())["rows"]
    assert (single["precision"], half["precision"]) == ("float32", "float16")
    assert 0 < abs(single["train_loss"][0] - half["train_loss"][0]) < 0.1
    assert summary(tmp_path / "float16" / "1")["precision"] == "float16"
    assert (tmp_path / "precision.md").read_text() in capsys.readouterr().out


def test_scaling(tmp_path):
    """In a process of its own, since it says how many devices JAX is to simulate."""
    script = Path(__file__).parents[1] / "experiments" / "scaling.py"
    args = (*QUICK, "--batch-size", 16, "--counts", 1, 3, "--repeats", 2, "--workdir", tmp_path / "run")
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, *map(str, (script, *args))]
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    rows = json.loads((tmp_path / "run" / "scaling.json").read_text())["rows"]
    assert [(row["devices"], row["samples"]) for row in rows] == [(1, 16), (3, 48)]
    assert all(row[name] > 0 for row in rows for name in ("share", "whole", "sharded"))
    assert (tmp_path / "run" / "scaling.md").read_text() in out


@pytest.mark.parametrize(
    ("module", "args", "message"),
    [
        (k_tradeoff, ("--K", 0), "K must be numbers >= 1, got (0,)"),
        (k_tradeoff, ("--seeds", 0), "seeds must be >= 1, got 0"),
        (ablation, ("--surrogates", "relu"), "surrogates must be of triangle"),
        (precision, ("--seeds", 0), "seeds must be >= 1, got 0"),
        (scaling, ("--counts", 0), "counts must be numbers >= 1, got (0,)"),
        (scaling, ("--repeats", 0), "repeats must be >= 1, got 0"),
    ],
)
def test_bad_settings(module, args, message, monkeypatch, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert call(module, monkeypatch, *QUICK, *args, "--workdir", workdir) in (1, 2)
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not workdir.exists()
