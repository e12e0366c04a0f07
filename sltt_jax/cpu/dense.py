"""Matrix product whose gradient to the weights is fast on a CPU.

That gradient is x^T g. XLA reads x across its rows for it, which is up to twice as slow as the product x w
where rows are long. Here x is turned around first, which costs next to nothing beside the product, and the
product is one like x w. Other platforms are left to XLA.
"""

import math
from functools import partial

import jax
from jax import lax

# Rows of x below which the product is limited by memory, and turning x around gains nothing.
_MANY_ROWS = 32


def dot_general(lhs: jax.Array, rhs: jax.Array, dimension_numbers, precision=None, **kwargs) -> jax.Array:
    """`lax.dot_general`, for the same-named field of `flax.linen.Dense`.

    Args:
      lhs: `[..., in]`.
      rhs: `[in, out]`.
      dimension_numbers, precision, **kwargs: as in `lax`. Other products than that of the last axis of `lhs`
        with the first of `rhs` are handed on to it.

    Returns:
      `[..., out]`.
    """
    plain = dimension_numbers == (((lhs.ndim - 1,), (0,)), ((), ())) and rhs.ndim == 2
    if not plain or any(v is not None for v in kwargs.values()) or lhs.dtype != rhs.dtype:
        return lax.dot_general(lhs, rhs, dimension_numbers, precision, **kwargs)
    return _dot(lhs, rhs, precision)


def _product(x, w, precision):
    return lax.dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())), precision)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dot(x, w, precision):
    return _product(x, w, precision)


def _dot_fwd(x, w, precision):
    return _product(x, w, precision), (x, w)


def _dot_bwd(precision, saved, g):
    """Both gradients; the one that nobody uses is dead code to the compiler."""
    x, w = saved
    product = partial(_product, precision=precision)
    (dx,) = jax.linear_transpose(lambda x: product(x, w), x)(g)

    def transposed(x, g):
        (dw,) = jax.linear_transpose(lambda w: product(x, w), w)(g)
        return dw

    def turned(x, g):
        x, g = (a.reshape(-1, a.shape[-1]) for a in (x, g))
        return product(lax.optimization_barrier(x.T), g)

    rows = math.prod(x.shape[:-1])
    many = isinstance(rows, int) and rows >= _MANY_ROWS  # and not symbolic, as in an exported program
    dw = lax.platform_dependent(x, g, cpu=turned, default=transposed) if many else transposed(x, g)
    return dx, dw


_dot.defvjp(_dot_fwd, _dot_bwd)
