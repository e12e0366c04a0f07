"""The flag --devices of experiments/train.py."""

import json

import pytest
import train

from tests.common.scripts import call


def run(monkeypatch, workdir, *args):
    """The exit status and the summary of a run of one epoch."""
    settings = ("--features", 16, "--T", 2, "--epochs", 1, "--train-samples", 128, "--test-samples", 64)
    status = call(train, monkeypatch, "digits_mlp", *settings, *args, "--workdir", workdir)
    return status, json.loads((workdir / "summary.json").read_text()) if status == 0 else None


def test_a_batch_that_four_devices_cannot_share(monkeypatch, tmp_path, capsys):
    status, _ = run(monkeypatch, tmp_path / "run", "--devices", 4, "--batch-size", 30)
    assert status == 1 and not (tmp_path / "run").exists()
    message = "batch_size 30 cannot be shared by 4 devices; the nearest that can: 28 or 32"
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_on_four_devices_is_that_on_one(monkeypatch, tmp_path):
    summaries = {}
    for count in (1, 4):
        status, summaries[count] = run(monkeypatch, tmp_path / str(count), "--devices", count)
        assert status == 0 and summaries[count]["devices"] == count
    # Sums are in another order; the samples, their order and the start are the same.
    for name in ("train_loss", "test_loss"):
        assert summaries[4][name] == pytest.approx(summaries[1][name], rel=1e-5)
    # A run begun on four devices is resumed on one, and says so.
    with pytest.warns(UserWarning, match="trained on 4 devices so far, now on 1"):
        status, again = run(monkeypatch, tmp_path / "4", "--devices", 1)
    assert status == 0 and again["parameters_sha256"] == summaries[4]["parameters_sha256"]
