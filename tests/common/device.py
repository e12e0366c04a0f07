"""The device that `pytest -m device` is about."""

import os

import jax
import pytest

# Of the largest entry of a gradient. Sums are rounded otherwise from program to program.
BOUNDS = {"float64": 1e-10, "float32": 1e-4}
# What accelerators compute in; a TPU has no double precision.
PRECISIONS = {"gpu": ("float64", "float32"), "cpu": ("float64", "float32")}

# With SLTT_DEVICE_TESTS=cpu the tests run on the CPU, to see that they pass and fail as they should. It has
# several devices in tests, and the last is not the one that results are compared with.
DEVICE = jax.devices()[-1]
CHOSEN = DEVICE.platform != "cpu" or os.environ.get("SLTT_DEVICE_TESTS") == "cpu"

on_device = [
    pytest.mark.device,
    pytest.mark.skipif(
        not CHOSEN, reason="JAX has no accelerator; SLTT_DEVICE_TESTS=cpu runs this on the CPU"
    ),
]


def needs(precision: str):
    """Skips a test on a device that does not compute in this precision."""
    if precision not in PRECISIONS.get(DEVICE.platform, ("float32",)):
        pytest.skip(f"a {DEVICE.platform} does not compute in {precision}")
