"""A network of the paper and a run of training on an accelerator."""

import json
from pathlib import Path

import jax
import parity
import pytest
import train

from tests.common.device import DEVICE, needs, on_device
from tests.common.scripts import call

pytestmark = on_device
CASE = Path(__file__).parents[1] / "parity" / "vgg11_dvs.json"


def test_numbers_of_the_authors_code():
    needs("float64")
    with jax.enable_x64(True), jax.default_device(DEVICE):
        found = parity.check(parity.load(CASE), ("sltt", "bptt"))
    assert found.keys() == {"forward", "sltt", "bptt"}
    assert not parity.failures(found), found


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_digits(precision, monkeypatch, tmp_path):
    """Three epochs of a network of fully connected layers; by chance it would be right in a tenth."""
    args = (
        "digits_mlp",
        "--rule",
        "sltt(3)",
        "--T",
        3,
        "--epochs",
        3,
        "--devices",
        1,
        "--precision",
        precision,
    )
    assert call(train, monkeypatch, *args, "--workdir", tmp_path) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["test_accuracy"] > 0.8, summary["test_accuracy"]
    assert jax.default_backend() == DEVICE.platform
