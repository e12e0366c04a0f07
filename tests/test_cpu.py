"""The flags for XLA's CPU compiler, in processes of their own, since XLA reads its flags once."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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
    import runs, train

    runs.presets()
    runs.prepare_xla()
x, w = jnp.zeros((2, 16, 16, 32)), jnp.zeros((3, 3, 32, 32))
numbers = "NHWC", "HWIO", "NHWC"
conv = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)
print(jax.jit(conv).lower(x, w).compile().as_text())
"""


# Prints for every network and rule the fusions that hold a convolution and something else.
NETWORKS = """
import json, re
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
        for _ in range(3):
            xs = LIF(Neuron())(xs, temporal_gradient=temporal_gradient)
            xs = self.conv(8, (self.size, self.size), use_bias=False)(xs)
        return nn.Dense(3)(xs.mean((2, 3)))

def mixed(model, rule):
    x = jnp.ones((4, 6, 6, 8))
    params, state = functional.init(model, jax.random.key(0), x)
    f = rule.value_and_grad(functional.applier(model), losses.classification())
    args = params, state, jnp.ones((6, *x.shape)), jnp.zeros(4, int), jax.random.key(0)
    text = jax.jit(f).lower(*args).compile().as_text()
    assert " fusion(" in text
    called = set(re.findall(r"kind=kLoop, calls=(%[^,]+)", text))
    found = []
    for computation in text.strip().split(chr(10) + "}" + chr(10)):
        head, *body = computation.strip().splitlines()
        work = [line for line in body if " parameter(" not in line]
        if head.split()[0] in called and len(work) > 1:
            found += [line.strip() for line in work if re.search(" convolution[(]| dot[(]", line)]
    return found

print(json.dumps({
    name: {
        f"{size} {rule}": mixed(Net(size, conv), rule)
        for size in (1, 3) for rule in (rules.sltt(), rules.sltt(chunk=2), rules.bptt())
    }
    for name, conv in (("ours", Conv), ("flax", nn.Conv))
}))
"""

FLAGS = """
import os, jax, logging
from sltt_jax.cpu import tune_xla
tune_xla()
print(os.environ["XLA_FLAGS"], logging.getLevelName(logging.getLogger("jax").level))
"""

# Compiles a gradient that keeps 64 arrays of 2 MiB, one by one or stacked.
BACKWARD = """
import sys
import jax, jax.numpy as jnp
from sltt_jax.cpu import tune_xla
if "use" in sys.argv:
    tune_xla()

def loss(w, v):
    step = lambda v, _: (jnp.tanh(v @ w), None)
    return jax.lax.scan(step, v, length=64, unroll=1 if "stacked" in sys.argv else 64)[0].sum()

compiled = jax.jit(jax.grad(loss)).lower(jnp.ones((512, 512)), jnp.ones((1024, 512))).compile()
print(compiled.memory_analysis().temp_size_in_bytes)
"""

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the flags are of the CPU compiler")


def start(program: str, *arguments: str, flags: str = "", **environment: str) -> subprocess.CompletedProcess:
    environment = dict(os.environ, XLA_FLAGS=flags, **environment)
    environment["PYTHONPATH"] = str(Path(__file__).parents[1] / "experiments")
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


def run(program: str, *arguments: str) -> str:
    return start(program, *arguments).stdout


@on_cpu
def test_convolutions_are_not_given_to_ynnpack():
    assert "ynn" in run(PROGRAM)  # else there would be nothing to switch off
    for way in ("use", "experiment"):
        told = run(PROGRAM, way)
        assert "convolution(" in told and "ynn" not in told, way


@on_cpu
def test_no_convolution_is_drawn_into_a_loop():
    """It would be computed naively there. The control: those of Linen are."""
    found = json.loads(run(NETWORKS))
    assert found["ours"].keys() == found["flax"].keys() and len(found["ours"]) == 6
    assert not any(found["ours"].values()), found["ours"]
    assert found["flax"]["3 sltt(chunk=1)"]


@on_cpu
def test_temporaries_are_in_blocks_that_malloc_keeps(tmp_path):
    """Larger ones glibc gives back to the system. The control: without the flag there is one of all."""
    found = {}
    for way in ("use", "leave"):
        flags = f"--xla_dump_to={tmp_path / way} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_loss"
        told = start(BACKWARD, way, flags=flags, JAX_ENABLE_COMPILATION_CACHE="false")
        (text,) = (tmp_path / way).glob("*-buffer-assignment.txt")
        found[way] = [int(size) for size in re.findall(r"size (\d+),.* preallocated-temp", text.read_text())]
        assert sum(found[way]) == int(told.stdout) > 128 * 2**20, way
    assert len(found["leave"]) == 1
    assert max(found["use"]) < 32 * 2**20 - 4096
    assert sum(found["use"]) < 1.05 * sum(found["leave"])


@on_cpu
def test_xla_does_not_warn_of_every_larger_array():
    (blocks,) = [flag for flag in run(FLAGS).split() if "multiheap" in flag]
    for way, warns in (("use", False), ("leave", True)):
        told = start(BACKWARD, way, "stacked", flags=blocks, JAX_ENABLE_COMPILATION_CACHE="false")
        assert int(told.stdout) > 128 * 2**20
        assert ("per-heap size limit" in told.stderr) == warns, way
    for level in ("NOTSET", "INFO"):  # Python's loggers stay as they are
        assert start(FLAGS, JAX_LOGGING_LEVEL=level).stdout.split()[-1] == level


@pytest.mark.parametrize(
    ("platforms", "plugins", "told"),
    [(None, [], True), ("cpu", ["cuda"], True), (None, ["cuda"], False), ("cuda,cpu", [], False)],
)
def test_blocks_are_set_for_the_cpu_alone(monkeypatch, platforms, plugins, told):
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr("sltt_jax.cpu.entry_points", lambda group: plugins)
    monkeypatch.setattr("sltt_jax.cpu.find_spec", lambda name: None)
    config = SimpleNamespace(jax_platforms=platforms, jax_logging_level="INFO")
    monkeypatch.setattr("sltt_jax.cpu.jax", SimpleNamespace(config=config))
    tune_xla()
    assert ("multiheap" in os.environ["XLA_FLAGS"]) == told


def test_flags_of_the_user_stay(monkeypatch):
    monkeypatch.setattr("sltt_jax.cpu._only_cpu", lambda: True)
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    tune_xla()
    first = os.environ["XLA_FLAGS"].split()
    assert len(first) == 4 and first[0] == "--xla_force_host_platform_device_count=2"
    tune_xla()
    assert os.environ["XLA_FLAGS"].split() == first
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=-reduce")
    tune_xla()
    mine, *added = os.environ["XLA_FLAGS"].split()
    assert mine == "--xla_cpu_experimental_ynn_fusion_type=-reduce"
    assert [flag in added for flag in first[2:]] == [True, True] and len(added) == 2


def test_nothing_is_set_for_an_untried_jaxlib(monkeypatch):
    for number, told in (("0.12.9", True), ("0.13.0", False), ("1.0.0", False)):
        monkeypatch.setenv("XLA_FLAGS", "")
        monkeypatch.setattr("sltt_jax.cpu.version", lambda package, number=number: number)
        tune_xla()
        assert bool(os.environ["XLA_FLAGS"]) == told, number
