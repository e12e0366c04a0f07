"""Spikes with a surrogate derivative.

The forward pass is the Heaviside step `s = 1 if x >= 0 else 0` of `x = u - v_threshold`; the backward pass
uses the derivative of a smooth stand-in, because that of the step is zero almost everywhere:

    name          derivative at x                          peak      half width at half maximum
    triangle      alpha max(0, 1 - alpha |x|)              alpha     1 / (2 alpha)
    rectangle     alpha if |x| <= 1 / (2 alpha) else 0     alpha     1 / (2 alpha)
    sigmoid       alpha s(alpha x) (1 - s(alpha x))        alpha/4   1.763 / alpha
    atan          (alpha/2) / (1 + (pi/2 alpha x)^2)       alpha/2   2 / (pi alpha)
    fast_sigmoid  1 / (1 + alpha |x|)^2                    1         0.414 / alpha

Triangle and rectangle with alpha = 1 and sigmoid with alpha = 4 are those of the SLTT paper (Meng et al.
2023, section 3, with gamma = 1/alpha). All but fast_sigmoid have unit area, so `alpha` changes their width
and not the size of a gradient averaged over membranes.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from sltt_jax.cpu import computed_once, stored


@dataclasses.dataclass(frozen=True)
class Surrogate:
    """Spike function `x -> s`: the Heaviside step forward, `derivative(x, alpha)` backward.

    Build one of the five by its name below, or give a derivative of your own:
    `Surrogate(lambda x, alpha: jnp.exp(-alpha * x**2), alpha=1.0)`. Hashable, so it may be a static argument.

    Attributes:
      derivative: elementwise function of `x = u - v_threshold` (any shape) and `alpha`.
      alpha: sharpness, a finite number > 0.
      dtype: in which the derivative is kept for the backward pass; None: that of `x`.
    """

    derivative: Callable[[jax.Array, float], jax.Array]
    alpha: float
    dtype: Any = None

    def __post_init__(self):
        if isinstance(self.alpha, core.Tracer) or np.ndim(self.alpha):
            raise ValueError(
                f"alpha must be one number that is known when a network is traced, got {self.alpha}"
            )
        object.__setattr__(self, "alpha", float(self.alpha))
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha must be > 0 and finite, got {self.alpha}")

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns spikes (0 or 1, shape and dtype of `x`); one at exactly `x == 0` too."""
        return _spike(self, jnp.asarray(x))


def _step(x):
    return computed_once((x >= 0).astype(x.dtype))


_spike = jax.custom_jvp(lambda surrogate, x: _step(x), nondiff_argnums=(0,))


@_spike.defjvp
def _spike_jvp(surrogate, primals, tangents):
    (x,), (dx,) = primals, tangents
    derivative = surrogate.derivative(x, surrogate.alpha)
    if surrogate.dtype is not None:
        derivative = stored(derivative.astype(surrogate.dtype))
    # The spike itself and not `_step`, which whoever differentiates once more would see as a constant.
    return _spike(surrogate, x), _scaled(dx, derivative)


# What is kept for the backward pass is `derivative` as it came.
@partial(jax.checkpoint, prevent_cse=False)
def _scaled(dx, derivative):
    return derivative.astype(dx.dtype) * dx


def _triangle(x, alpha):
    return alpha * jnp.maximum(0, 1 - alpha * jnp.abs(x))


def _rectangle(x, alpha):
    return jnp.where(jnp.abs(x) <= 0.5 / alpha, alpha, 0).astype(x.dtype)


def _sigmoid(x, alpha):
    s = jax.nn.sigmoid(alpha * x)
    return alpha * s * (1 - s)


def _atan(x, alpha):
    return (alpha / 2) / (1 + (jnp.pi / 2 * alpha * x) ** 2)


def _fast_sigmoid(x, alpha):
    return 1 / (1 + alpha * jnp.abs(x)) ** 2


def triangle(alpha: float = 1.0) -> Surrogate:
    """Piecewise linear derivative, zero beyond `|x| = 1/alpha`; the paper's default."""
    return Surrogate(_triangle, alpha)


def rectangle(alpha: float = 1.0) -> Surrogate:
    """Boxcar derivative of width `1/alpha`."""
    return Surrogate(_rectangle, alpha)


def sigmoid(alpha: float = 4.0) -> Surrogate:
    """Derivative of the logistic function of `alpha x`."""
    return Surrogate(_sigmoid, alpha)


def atan(alpha: float = 2.0) -> Surrogate:
    """Derivative of `arctan(pi/2 alpha x) / pi` (a Cauchy density)."""
    return Surrogate(_atan, alpha)


def fast_sigmoid(alpha: float = 2.0) -> Surrogate:
    """Derivative of `x / (1 + alpha |x|)`, also known as SuperSpike.

    Other libraries default to a slope of 25, which is so narrow that deep networks hardly learn.
    """
    return Surrogate(_fast_sigmoid, alpha)


SURROGATES = {f.__name__: f for f in (triangle, rectangle, sigmoid, atan, fast_sigmoid)}
