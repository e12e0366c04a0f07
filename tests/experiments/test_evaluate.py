"""Evaluation of a run at other numbers of time steps."""

import json
import shutil

import evaluate
import pytest

from sltt_jax import training
from tests.common.scripts import call

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_evaluate_at_other_numbers_of_steps(digits_run, monkeypatch, tmp_path, capsys):
    tmp_path = shutil.copytree(digits_run, tmp_path / "run")
    summary = json.loads((tmp_path / "summary.json").read_text())
    # The rule of the run, sltt_k(2), would need more than one step.
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
