"""Normalisation of every time step by its own statistics, in few passes over the array.

    mean[t], var[t] = over (B, H, W) of x[t]                  y[t] = (x[t] - mean[t]) / sqrt(var[t] + epsilon) scale + bias

A training update on a GPU is bound by how often arrays of this size are read. The statistics take one pass, and
the gradient to `x` two, where the derivatives of a mean and of a variance taken apart would make it three.
"""

from functools import partial

import jax
import jax.numpy as jnp

from sltt_jax.blocks import at_least_float32


def statistics(x: jax.Array, axis_name: str | None = None) -> tuple[jax.Array, jax.Array]:
    """Takes mean and variance of every step and channel, at least in float32, in one pass over `x`.

        m1, m2 = means of x - a and (x - a)^2           mean = a + m1, var = m2 - m1^2

    with a value of the same channel as `a`: the closer it is to the mean, the less is lost in the difference. With
    a = 0 a variance of 1 would be lost in float32 at a mean of 3000.

    Args:
      x: `[T, B, ..., C]`.
      axis_name: of a `pmap`, over whose devices the statistics are taken as well.

    Returns:
      `(mean, var)`, both `[T, 1, ..., C]`; the variance is that of the values themselves, divided by their number.
    """
    axes = tuple(range(1, x.ndim - 1))
    x = at_least_float32(x)
    origin = jax.lax.stop_gradient(x[(slice(None), *(slice(0, 1) for _ in axes))])
    x = x - origin
    mean, square = x.mean(axes, keepdims=True), (x * x).mean(axes, keepdims=True)
    var = jnp.maximum(square - mean * mean, 0)
    mean = mean + origin
    if axis_name is not None:
        of_device, mean = mean, jax.lax.pmean(mean, axis_name)
        var = jax.lax.pmean(var + (of_device - mean) ** 2, axis_name)
    return mean, var


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises every step of `x`, `[T, B, ..., C]`; `scale` and `bias` are `[T, 1, ..., C]`.

    Returns:
      `(y, mean, var)`, all at least float32; the statistics are as from `statistics`, and constants to
      differentiation.
    """
    mean, var = statistics(x, axis_name)
    y = (at_least_float32(x) - mean) * (jax.lax.rsqrt(var + epsilon) * scale) + bias
    return y, mean, var


@normalise.defjvp
def _normalise_jvp(epsilon, axis_name, primals, tangents):
    x, scale, _ = primals
    y, mean, var = normalise(*primals, epsilon, axis_name)
    root = jax.lax.rsqrt(var + epsilon)
    axes = tuple(range(1, x.ndim - 1))

    # What the backward pass keeps of it is `x` as it came, maybe in half precision.
    @partial(jax.checkpoint, prevent_cse=False)
    def linear(tangents, x, mean, root, scale):
        dx, dscale, dbias = tangents
        dx = at_least_float32(dx)
        average = lambda a: a.mean(axes, keepdims=True)
        if axis_name is not None:
            average = lambda a: jax.lax.pmean(a.mean(axes, keepdims=True), axis_name)
        unit = (at_least_float32(x) - mean) * root
        k = root * scale
        return k * dx + unit * (dscale - k * average(unit * dx)) + (dbias - k * average(dx))

    zero = jnp.zeros_like(mean)
    return (y, mean, var), (linear(tangents, x, mean, root, scale), zero, zero)
