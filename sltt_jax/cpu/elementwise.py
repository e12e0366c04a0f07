"""Loops and elementwise operations, as XLA's CPU compiler runs them fast."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Loops as short as this are unrolled on a CPU. Of longer ones XLA would make one pass for several steps that
# computes the earlier steps again for each, which takes more time than their loop.
_SHORT = 5

# Elsewhere a loop of so many steps is unrolled whole, and becomes one pass over them; of longer ones, whose
# programs would grow too large, each iteration has a few steps: launches of kernels are what a loop costs.
_WHOLE, _PART = 32, 8


def scan(step: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
    """Runs `lax.scan(step, carry, xs)`, unrolled as it suits the platform.

    Args:
      step: `(carry, x) -> (carry, y)`.
      carry: before the first step.
      xs: a pytree of arrays `[C, ...]`.

    Returns:
      The carry after the last step, and all `y`, `[C, ...]`.
    """
    loop = lambda unroll: lambda carry, xs: lax.scan(step, carry, xs, unroll=unroll)
    C = len(jax.tree.leaves(xs)[0])
    short, whole = C if C <= _SHORT else 1, C if C <= _WHOLE else _PART
    return lax.platform_dependent(carry, xs, cpu=loop(short), default=loop(whole))


def computed_once(spikes: jax.Array) -> jax.Array:
    """Spikes (0 or 1, any shape) as they are, which a CPU computes once however often they are read.

    XLA's CPU compiler repeats a comparison, with all elementwise operations before it, in everything that
    reads its result. A root it takes for expensive and computes once; that of 0 or 1 is itself.
    """
    return lax.platform_dependent(spikes, cpu=jnp.sqrt, default=lambda s: s)


def stored(x: jax.Array) -> jax.Array:
    """Array as it is, which GPUs and TPUs compute once and write to memory however often it is read.

    Their compilers would rather make it again in everything that reads it, which for an array of a smaller
    type than what it is made of moves more bytes.
    """
    return lax.platform_dependent(x, cpu=lambda x: x, default=lax.optimization_barrier)
