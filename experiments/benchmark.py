"""Time of an update of a convolutional network: its loop over time against the same update unrolled.

    python experiments/benchmark.py

takes about two minutes on two cores. On a CPU a convolution's gradient is slow in a loop unless it has a
special form (sltt_jax/convolution.py). The table shows that ours has it: the loop is about as fast as the
program without a loop, where XLA finds that form by itself. The last row is the loop with XLA's own gradient.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import optax
import tyro
from train import write_json

from sltt_jax import convolution, functional, losses, rules
from sltt_jax.models import ConvNet
from sltt_jax.neurons import Neuron


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A network 32-64-128 of 3x3 convolutions on 34x34x2 frames.

    Attributes:
      T: time steps.
      batch_size: samples an update.
      repeats: timed updates; the median counts.
      workdir: directory of benchmark.json.
    """

    T: int = 10
    batch_size: int = 16
    repeats: int = 15
    workdir: Path = Path("runs/benchmark")

    def __post_init__(self):
        for name in ("T", "batch_size", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")


MODEL = ConvNet((32, 64, 128), neuron=Neuron(tau=1.1))
LOSS = losses.classification(mse_weight=0.05)
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def make_update(value_and_grad: Callable) -> Callable:
    """A whole update: state at rest, forward, backward, SGD with momentum."""

    def update(carry, xs, y):
        params, state, opt_state = carry
        state = functional.at_rest(MODEL, state, xs[0])
        (loss, aux), grads = value_and_grad(params, state, xs, y, jax.random.key(0))
        changes, opt_state = OPTIMIZER.update(grads, opt_state, params)
        return (optax.apply_updates(params, changes), aux.state, opt_state), loss

    return update


def unrolled_sltt(params, state, xs, y, key):
    """SLTT as a Python loop: one rule for each step, and no loop in the compiled program."""
    step = rules.sltt().value_and_grad(functional.applier(MODEL), LOSS)
    grads = jax.tree.map(jnp.zeros_like, params)
    total, steps = jnp.zeros(()), []
    for t in range(len(xs)):
        (loss, aux), g = step(params, state, xs[t : t + 1], y, key)
        grads = jax.tree.map(lambda a, b: a + b / len(xs), grads, g)
        state, total = aux.state, total + aux.outputs
        steps.append(loss)
    losses_ = jnp.stack(steps)
    return (losses_.mean(), rules.Aux(losses_, total, state)), grads


def main() -> int:
    settings = tyro.cli(Benchmark, description=__doc__)
    settings.workdir.mkdir(parents=True, exist_ok=True)
    xs = jax.random.normal(jax.random.key(0), (settings.T, settings.batch_size, 34, 34, 2))
    y = jnp.arange(settings.batch_size) % 10
    params, state = functional.init(MODEL, jax.random.key(1), xs[0])
    carry = params, state, OPTIMIZER.init(params)

    def rule(r: rules.Rule) -> Callable:
        return r.value_and_grad(functional.applier(MODEL), LOSS)

    programs = {
        "sltt, unrolled": unrolled_sltt,
        "sltt": rule(rules.sltt()),
        "sltt(chunk=T)": rule(rules.sltt(chunk=settings.T)),
        "sltt_k(2)": rule(rules.sltt_k(2)),
        "bptt": rule(rules.bptt()),
    }
    compiled, rows = {}, {}
    for name, f in programs.items():
        compiled[name], rows[name] = compile_update(f, carry, xs, y)
    with mock.patch.object(convolution, "_conv", convolution._forward_conv):
        compiled["sltt, XLA's gradient"], rows["sltt, XLA's gradient"] = compile_update(
            programs["sltt"], carry, xs, y
        )

    # Round robin, so that whatever else the machine does falls on all alike.
    times = {name: [] for name in compiled}
    for i in range(settings.repeats + 1):
        for name, f in compiled.items():
            began = time.perf_counter()
            jax.block_until_ready(f(carry, xs, y))
            if i:
                times[name].append(time.perf_counter() - began)
    base = statistics.median(times["sltt, unrolled"])
    print(f"{'':22} {'update':>10} {'ratio':>7} {'compile':>9}")
    for name, row in rows.items():
        row["seconds"] = statistics.median(times[name])
        row["ratio"] = row["seconds"] / base
        print(f"{name:22} {row['seconds'] * 1e3:7.1f} ms {row['ratio']:7.2f} {row['compile_seconds']:7.1f} s")
    write_json(settings.workdir / "benchmark.json", rows)
    return 0


def compile_update(value_and_grad, carry, xs, y):
    began = time.perf_counter()
    compiled = jax.jit(make_update(value_and_grad)).lower(carry, xs, y).compile()
    return compiled, {"compile_seconds": time.perf_counter() - began}


if __name__ == "__main__":
    sys.exit(main())
