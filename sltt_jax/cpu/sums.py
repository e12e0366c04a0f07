"""Two sums at a time, as platforms take them fast."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax


def two_sums(a: jax.Array, b: jax.Array, axes: Sequence[int]) -> tuple[jax.Array, jax.Array]:
    """Sums of `a` and of `b`, of one shape and type, over `axes`, which stay as axes of length 1.

    Accelerators sum long arrays in two kernels, and take both sums in the same two. XLA's CPU compiler has no
    fast code for that.
    """
    return _two_sums(a, b, tuple(axes))


def _apart(a, b, axes):
    return a.sum(axes, keepdims=True), b.sum(axes, keepdims=True)


def _together(a, b, axes):
    zero = jnp.zeros((), a.dtype)
    add = lambda x, y: (x[0] + y[0], x[1] + y[1])
    return tuple(jnp.expand_dims(s, axes) for s in lax.reduce((a, b), (zero, zero), add, axes))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _two_sums(a, b, axes):
    apart, together = (partial(f, axes=axes) for f in (_apart, _together))
    return lax.platform_dependent(a, b, cpu=apart, default=together)


@_two_sums.defjvp
def _two_sums_jvp(axes, primals, tangents):
    da, db = tangents
    return _two_sums(*primals, axes), _apart(da, db, axes)
