"""The flags for XLA's CPU compiler, in processes of their own, since XLA reads its flags once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from sltt_jax.cpu import tune_xla

PROGRAM = """
import sys
import jax, jax.numpy as jnp
from sltt_jax.cpu import tune_xla
if "use" in sys.argv:
    tune_xla()
if "experiment" in sys.argv:
    import train
    from common.command import prepare_xla

    prepare_xla()
x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 16, 16, 32), (3, 3, 32, 32)))
numbers = "NHWC", "HWIO", "NHWC"
conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)
print(jax.jit(conv).lower(x, w).compile().as_text())
"""


# Prints for every network and rule the fusions that hold a convolution and something else.
NETWORKS = """
import json, re
from functools import partial
import flax.linen as nn, jax, jax.numpy as jnp
from sltt_jax import Neuron, functional, losses, rules
from sltt_jax.cpu import tune_xla
from sltt_jax.layers import LIF, Conv

tune_xla()

class Net(nn.Module):
    size: int
    conv: type

    @nn.compact
    def __call__(self, xs, *, train, temporal_gradient):
        for _ in range(2):
            xs = LIF(Neuron())(xs, temporal_gradient=temporal_gradient)
            xs = self.conv(8, (self.size, self.size), use_bias=False)(xs)
        return nn.Dense(3)(xs.mean((2, 3)))

def mixed(model, rule):
    shapes = (4, 6, 6, 8), (6, 4, 6, 6, 8), (4,)
    x, xs, y = map(jax.ShapeDtypeStruct, shapes, (jnp.float32, jnp.float32, jnp.int32))
    params, state = jax.eval_shape(partial(functional.init, model), jax.random.key(0), x)
    f = rule.value_and_grad(functional.applier(model), losses.classification())
    text = jax.jit(f).lower(params, state, xs, y).compile().as_text()
    assert " fusion(" in text
    called = set(re.findall(r"kind=kLoop, calls=(%[^,]+)", text))
    found = []
    for computation in text.strip().split(chr(10) + "}" + chr(10)):
        head, *body = computation.strip().splitlines()
        work = [line for line in body if " parameter(" not in line]
        if head.split()[0] in called and len(work) > 1:
            found += [line.strip() for line in work if re.search(" convolution[(]| dot[(]", line)]
    return found

every = [rules.sltt(), rules.sltt(chunk=2), rules.bptt()]
cases = [(Conv, size, rule) for size in (1, 3) for rule in every] + [(nn.Conv, 3, every[0])]
print(json.dumps([mixed(Net(size, conv), rule) for conv, size, rule in cases]))
"""

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the flags are of the CPU compiler")


def run(program: str, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "experiments")}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@on_cpu
def test_convolutions_are_not_given_to_ynnpack():
    assert "ynn" in run(PROGRAM)  # else there would be nothing to switch off
    for way in ("use", "experiment"):
        told = run(PROGRAM, way)
        assert "convolution(" in told and "ynn" not in told, way


@pytest.mark.slow
@on_cpu
def test_no_convolution_is_drawn_into_a_loop():
    """It would be computed naively there. The control: one of Linen's is."""
    *ours, of_linen = json.loads(run(NETWORKS))
    assert len(ours) == 6 and not any(ours), ours
    assert of_linen


def test_flags_of_the_user_stay(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    tune_xla()
    first = os.environ["XLA_FLAGS"].split()
    assert len(first) == 3 and first[0] == "--xla_force_host_platform_device_count=2"
    tune_xla()
    assert os.environ["XLA_FLAGS"].split() == first
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=-reduce")
    tune_xla()
    mine, *added = os.environ["XLA_FLAGS"].split()
    assert mine == "--xla_cpu_experimental_ynn_fusion_type=-reduce"
    assert len(added) == 1 and "multi_output" in added[0]


def test_nothing_is_set_for_an_untried_jaxlib(monkeypatch):
    for number, told in (("0.12.9", True), ("0.13.0", False), ("1.0.0", False)):
        monkeypatch.setenv("XLA_FLAGS", "")
        monkeypatch.setattr("sltt_jax.cpu.flags.version", lambda package, number=number: number)
        tune_xla()
        assert bool(os.environ["XLA_FLAGS"]) == told, number
