"""The flag for XLA's CPU compiler, in processes of their own, since XLA reads its flags once."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from sltt_jax.cpu import use_all_cores

PROGRAM = """
import sys
import jax, jax.numpy as jnp
from sltt_jax.cpu import use_all_cores
if "use" in sys.argv:
    use_all_cores()
if "experiment" in sys.argv:
    import runs, train

    runs.presets()
    runs.prepare_xla()
x, w = jnp.zeros((2, 16, 16, 32)), jnp.zeros((3, 3, 32, 32))
numbers = "NHWC", "HWIO", "NHWC"
conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)
print(jax.jit(conv).lower(x, w).compile().as_text())
"""


def compiled(*arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1] / "experiments")
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the flag is of the CPU compiler")
def test_convolutions_are_not_given_to_ynnpack():
    assert "ynn" in compiled()  # else there would be nothing to switch off
    for way in ("use", "experiment"):
        told = compiled(way)
        assert "convolution(" in told and "ynn" not in told, way


def test_flags_of_the_user_stay(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    use_all_cores()
    first = os.environ["XLA_FLAGS"].split()
    assert len(first) == 2 and first[0] == "--xla_force_host_platform_device_count=2"
    use_all_cores()
    assert os.environ["XLA_FLAGS"].split() == first
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=-reduce")
    use_all_cores()
    assert os.environ["XLA_FLAGS"] == "--xla_cpu_experimental_ynn_fusion_type=-reduce"


def test_nothing_is_set_for_an_untried_jaxlib(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    for number, told in (("0.12.9", True), ("0.13.0", False), ("1.0.0", False)):
        monkeypatch.setattr("sltt_jax.cpu.version", lambda package, number=number: number)
        use_all_cores()
        assert ("XLA_FLAGS" in os.environ) == told, number
        monkeypatch.delenv("XLA_FLAGS", raising=False)
