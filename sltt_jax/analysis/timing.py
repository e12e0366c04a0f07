"""Seconds of a training update, measured with a clock."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sltt_jax.blocks import PyTree, check_at_least_one


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of the updates of one program.

    Attributes:
      compile_seconds: to trace and compile it; 0 if it came compiled.
      each: of each timed update, in order.
    """

    compile_seconds: float
    each: tuple[float, ...]

    @property
    def seconds(self) -> float:
        """Median over the updates."""
        return statistics.median(self.each)


def time_update(
    update: Callable[..., Any] | jax.stages.Compiled, state: PyTree, *args: PyTree, repeats: int = 10
) -> Timing:
    """Times a whole training update: forward, backward and optimizer.

    It is compiled first, with the state donated, and run once untimed. Each timed update starts from the
    state of the one before and is waited for. The caller's state is left as it is.

    Args:
      update: `(state, *args) -> (state, anything)`, as `training.make_update` builds it; or the program that
        `program_cost` compiled.
      state: before the first update.
      *args: the same for all updates; they are on the device before the clock starts.
      repeats: timed updates, >= 1.

    Raises:
      ValueError: repeats is below 1.
    """
    check_at_least_one("repeats", repeats)
    # The update may donate its state: it gets one of its own.
    state = jax.tree.map(jnp.copy, state)
    args = jax.device_put(args)
    began = time.perf_counter()
    if isinstance(update, jax.stages.Compiled):
        program, compile_seconds = update, 0.0
    else:
        program = jax.jit(update, donate_argnums=0).lower(state, *args).compile()
        compile_seconds = time.perf_counter() - began
    state, _ = jax.block_until_ready(program(state, *args))
    each = []
    for _ in range(repeats):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(program(state, *args))
        each.append(time.perf_counter() - began)
    return Timing(compile_seconds, tuple(each))
