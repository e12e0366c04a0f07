"""Normalisation of every time step by its own statistics, in few passes over the array.

    y[t] = scale (x[t] - mean[t]) / sqrt(var[t] + epsilon) + bias       mean, var: over (B, H, W) of x[t]

What a training update takes on a GPU is how often it reads arrays of this size. The statistics take one pass,
and the gradient to `x` two, where the derivatives of a mean and a variance taken apart would make it three.
"""

from functools import partial

import jax
import jax.numpy as jnp

from sltt_jax.blocks import at_least_float32
from sltt_jax.cpu import two_sums
from sltt_jax.varying import vary_like


def statistics(x: jax.Array, axis_name: str | None = None) -> tuple[jax.Array, jax.Array]:
    """Takes mean and variance of every step and channel, at least in float32, in one pass over `x`.

        m1, m2 = means of x - a and (x - a)^2               mean = a + m1, var = m2 - m1^2

    with some value of the same step and channel as `a`, so that the difference loses little wherever the
    mean is: with a = 0, float32 would lose a variance of 1 at a mean of 3000. Being of the step itself it is
    the same in blocks of any length.

    Args:
      x: `[T, B, ..., C]`.
      axis_name: of a `pmap`, over whose devices the statistics are taken as well.

    Returns:
      `(mean, var)`, both `[T, 1, ..., C]`; the variance is the mean square.
    """
    origin = at_least_float32(x[:, *(slice(0, 1),) * (x.ndim - 2)])
    shifted = at_least_float32(x) - origin
    mean, square = _means(shifted, shifted * shifted)
    mean, var = origin + mean, jnp.maximum(square - mean * mean, 0)
    if axis_name is not None:
        of_device, mean = mean, jax.lax.pmean(mean, axis_name)
        var = jax.lax.pmean(var + (of_device - mean) ** 2, axis_name)
    return mean, var


def normalise(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises every step of `x` by its statistics.

    Args:
      x: `[T, B, ..., C]`.
      scale, bias: `[C]`.
      epsilon: added to the variance.
      axis_name: of a `pmap`, over whose devices the statistics are taken as well.

    Returns:
      `(y, mean, var)`, at least float32: `[T, B, ..., C]`, and the statistics `[T, 1, ..., C]`, which are
      constants to differentiation.
    """
    of_step = lambda a: jnp.broadcast_to(a, (len(x), *(1,) * (x.ndim - 2), x.shape[-1]))
    scale, bias = vary_like((of_step(scale), of_step(bias)), x)
    return _normalise(x, scale, bias, epsilon, axis_name)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalise(x, scale, bias, epsilon, axis_name):
    return _forward(x, scale, bias, epsilon, axis_name)[0]


def _forward(x, scale, bias, epsilon, axis_name):
    mean, var = statistics(x, axis_name)
    root = jax.lax.rsqrt(var + epsilon)
    y = (at_least_float32(x) - mean) * (root * scale) + bias
    return (y, mean, var), (x, mean, root, scale)  # of which `x` may be in half precision


def _backward(epsilon, axis_name, saved, gradients):
    (x, mean, root, scale), (g, _, _) = saved, gradients
    unit = (at_least_float32(x) - mean) * root
    dscale, dbias = two_sums(g * unit, g, range(1, x.ndim - 1))
    n = x[0, ..., 0].size
    average = lambda a: a / n if axis_name is None else jax.lax.pmean(a / n, axis_name)
    dx = root * scale * (g - average(dbias) - unit * average(dscale))
    return dx.astype(x.dtype), dscale, dbias


_normalise.defvjp(_forward, _backward)


def _means(a, b):
    n = a[0, ..., 0].size
    return tuple(s / n for s in two_sums(a, b, range(1, a.ndim - 1)))
