"""Programs of the peers in JAX."""

import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax

from peers.protocol import Program, peak_memory


def compile_update(
    update: Callable,
    state: Any,
    *args: Any,
    loss_of: Callable[[Any], Any] = lambda loss: loss,
    flops: Callable[[Any], float] | None = None,
) -> Program:
    """Compiles `update(state, *args) -> (state, metrics)`, the state donated.

    Args:
      update: the whole update.
      state: before the first one.
      *args: the same for all of them.
      loss_of: takes the loss out of the metrics.
      flops: counts the operations of a traced function.
    """
    args = jax.device_put(args)
    began = time.perf_counter()
    traced = jax.jit(update, donate_argnums=0).trace(state, *args)
    compiled = traced.lower().compile()
    seconds = time.perf_counter() - began
    return as_program(
        compiled, state, *args, loss_of=loss_of, compile_seconds=seconds, flops=flops and flops(traced)
    )


def as_program(
    compiled: Any,
    state: Any,
    *args: Any,
    loss_of: Callable[[Any], Any],
    compile_seconds: float,
    flops: float | None = None,
    devices: int = 1,
) -> Program:
    """A compiled update with its figures; the bytes that its compiler planned are those of all devices."""
    memory = compiled.memory_analysis()
    planned = None
    if memory is not None:
        planned = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        planned += memory.temp_size_in_bytes
    figures: dict[str, float | None] = {
        "compile_seconds": compile_seconds,
        "temp_bytes": None if memory is None else devices * memory.temp_size_in_bytes,
        "total_bytes": planned and devices * planned,
        "flops": flops,
    }
    carried = [state]

    def once() -> float:
        carried[0], metrics = jax.block_until_ready(compiled(carried[0], *args))
        return float(loss_of(metrics))

    return Program(once, figures, peak_memory if jax.default_backend() == "cpu" else None)


def about(*packages: str) -> dict[str, str]:
    """Device and versions."""
    return {
        "device": jax.devices()[0].device_kind,
        **{name: version(name) for name in ("jax", *packages)},
    }
