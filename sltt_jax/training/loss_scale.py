"""Dynamic scaling of the loss, which keeps small gradients above the smallest float16 (Micikevicius 2018)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

FIRST = 2.0**15
GROWTH_INTERVAL = 2000

# Below it the loss would be made smaller than it is, and nothing overflows for its scale.
LEAST = 1.0


class LossScale(NamedTuple):
    """Factor of the loss before the backward pass, by which its gradients are divided after it.

    Attributes:
      scale: a power of two, float32 scalar.
      good: updates since it last changed, int32 scalar.
    """

    scale: jax.Array
    good: jax.Array


def initial_loss_scale() -> LossScale:
    """Starts at 2^15, as high as most networks take it."""
    return LossScale(jnp.asarray(FIRST, jnp.float32), jnp.zeros((), jnp.int32))


def adjust(loss_scale: LossScale, finite: jax.Array) -> LossScale:
    """Halves the scale where a gradient was not finite, doubles it after `GROWTH_INTERVAL` good updates."""
    good = jnp.where(finite, loss_scale.good + 1, 0)
    grow = good == GROWTH_INTERVAL
    scale = loss_scale.scale * jnp.where(finite, jnp.where(grow, 2.0, 1.0), 0.5)
    return LossScale(jnp.maximum(scale, LEAST), jnp.where(grow, 0, good))
