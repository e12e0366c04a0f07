"""Weights as integers of few bits times a scale, and training through the rounding.

A kernel is any floating point array with two axes or more, its outputs on the last: weights of dense layers,
convolutions and lateral connections. All else (biases, norms, time constants) stays as it is: hardware adds a
bias to a sum of products, which has more bits than a weight.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sltt_jax.blocks import Apply, PyTree

LEAST_BITS, MOST_BITS = 2, 16


class Quantised(NamedTuple):
    """Rounded parameters, each tree of the structure of the parameters.

    Attributes:
      integers: of every kernel, in -(2^(bits-1) - 1)..2^(bits-1) - 1, int8 or int16; None for all else.
      scales: of every kernel, a positive scalar, or `[..., channels]` of as many axes as the kernel; None for
        all else.
      params: `integers * scales`, and all else as it was: what the network computes with.
    """

    integers: PyTree
    scales: PyTree
    params: PyTree


def quantise(
    params: PyTree, bits: int = 8, *, per_channel: bool = False, power_of_two: bool = False
) -> Quantised:
    """Rounds the kernels of a network to integers of so many bits, symmetrically around 0.

        scale = max |w| / (2^(bits-1) - 1)              or the next power of two above
        integer = round(w / scale)                      to the nearest, ties to even

    as `int8` weights are in Jacob et al. 2018, section 3, without a zero point. An error of a weight is at
    most `scale / 2`. A kernel of zeros has the scale 1.

    Args:
      params: parameters of a network.
      bits: of an integer with its sign, 2..16.
      per_channel: a scale for each output channel, the last axis, in place of one for the kernel.
      power_of_two: scales are powers of two, by which hardware multiplies with a shift.

    Raises:
      ValueError: `bits` is outside its range, or there is no kernel.
    """
    how = _checked(params, bits, per_channel, power_of_two)
    leaves, structure = jax.tree.flatten(params)
    parts = [_quantised_kernel(p, *how) if _is_kernel(p) else (None, None, p) for p in leaves]
    return Quantised(*map(structure.unflatten, zip(*parts, strict=True)))


def quantised(apply: Apply, bits: int = 8, *, per_channel: bool = False, power_of_two: bool = False) -> Apply:
    """Builds a network that computes with rounded kernels, and learns as if they were not rounded.

        outputs = apply(quantise(params).params, ...)        d quantise(params).params / d params = 1

    This is the straight-through estimator (Bengio et al. 2013): the gradient is that of `apply` at the
    rounded weights, under any rule, and moves the weights that are kept. Scales follow the weights as they
    learn.

    Args:
      apply: the network.
      bits, per_channel, power_of_two: as of `quantise`.

    Raises:
      ValueError: (when the network is called) as `quantise`.
    """

    def rounding(params, state, xs, *, temporal_gradient):
        how = _checked(params, bits, per_channel, power_of_two)
        through = lambda p: _rounded(p, *how) if _is_kernel(p) else p
        return apply(jax.tree.map(through, params), state, xs, temporal_gradient=temporal_gradient)

    return rounding


def _checked(params, bits, per_channel, power_of_two):
    if not LEAST_BITS <= bits <= MOST_BITS:
        raise ValueError(f"bits must be in {LEAST_BITS}..{MOST_BITS}, got {bits}")
    if not any(map(_is_kernel, jax.tree.leaves(params))):
        raise ValueError("there is no kernel to round: no floating point array with two axes or more")
    return bits, per_channel, power_of_two


def _is_kernel(p):
    return jnp.ndim(p) >= 2 and jnp.issubdtype(jnp.result_type(p), jnp.floating)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _quantised_kernel(w, bits, per_channel, power_of_two):
    """Returns the integers, the scale and the product of the two."""
    most = 2 ** (bits - 1) - 1
    largest = jnp.abs(w).max(tuple(range(w.ndim - 1)), keepdims=True) if per_channel else jnp.abs(w).max()
    scale = largest / most
    if power_of_two:
        fraction, exponent = jnp.frexp(scale)  # fraction in 1/2..1, and 1/2 for a power of two itself
        scale = jnp.ldexp(jnp.ones_like(scale), exponent - (fraction == 0.5))
    scale = jnp.where(largest == 0, 1, scale)
    along = jax.lax.broadcast_to_rank(scale, w.ndim)
    integers = jnp.round(w / along)
    return integers.astype(jnp.int8 if bits <= 8 else jnp.int16), scale, integers * along


@partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _rounded(w, bits, per_channel, power_of_two):
    return _quantised_kernel(w, bits, per_channel, power_of_two)[2]


@_rounded.defjvp
def _rounded_jvp(bits, per_channel, power_of_two, primals, tangents):
    return _rounded(*primals, bits, per_channel, power_of_two), tangents[0]
