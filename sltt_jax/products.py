"""Convolutions in bfloat16 as a few matrix products, for a CPU.

XLA's CPU compiler computes a convolution in bfloat16 as one in float32. A matrix product of bfloat16 with a
float32 result it gives to the CPU's matrix units, if it has AMX, which are several times faster.

One product an entry of the window would be too narrow for them, and all entries side by side too much to
copy. So the columns of the window are side by side in one operand, and its rows in the other or one after
the other. All sums are at least in float32.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
from jax import lax

# Every row of the window is a float32 result more.
_MOST_ROWS = 3


@functools.cache
def matrix_units() -> bool:
    """Whether this CPU has AMX for bfloat16, as far as Linux tells."""
    info = Path("/proc/cpuinfo")
    return info.exists() and "amx_bf16" in info.read_text()


def applies(x: jax.Array, w: jax.Array, precision) -> bool:
    """Whether products are likely to be faster than the convolution of `x` and `w`."""
    return (
        x.ndim == 4
        and w.shape[0] <= _MOST_ROWS
        and x.dtype == jnp.bfloat16
        and precision in (None, lax.Precision.DEFAULT)
        and matrix_units()
    )


def _product(a, b):
    dtype = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=dtype)


def convolve(x: jax.Array, w: jax.Array, strides, pads) -> jax.Array:
    """A convolution.

    Args:
      x: `[B, H, W, in]`.
      w: `[rows, columns, in, out]`.
      strides: of height and width.
      pads: (low, high) of height and width.

    Returns:
      `[B, H', W', out]`.
    """
    rows, columns, channels, features = w.shape
    down, right = strides
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*p, 0) for p in pads), (0, 0, 0)])
    B, H, W, _ = x.shape
    height, width = (H - rows) // down + 1, (W - columns) // right + 1
    stop = (width - 1) * right + 1
    seen = jnp.concatenate([x[:, :, j : j + stop : right] for j in range(columns)], -1)
    parts = _product(
        seen.reshape(-1, columns * channels),
        w.transpose(1, 2, 0, 3).reshape(columns * channels, rows * features),
    ).reshape(B, H, width, rows, features)
    stop = (height - 1) * down + 1
    return functools.reduce(jnp.add, (parts[:, i : i + stop : down, :, i] for i in range(rows))).astype(
        x.dtype
    )


def input_gradient(w: jax.Array, g: jax.Array, size, pads) -> jax.Array:
    """The gradient of a convolution of stride 1 to its input.

    Args:
      w: `[rows, columns, in, out]`.
      g: gradient to the output, `[B, H', W', out]`.
      size: height and width of the input.
      pads: those of the convolution.

    Returns:
      `[B, *size, in]`.
    """
    swapped = jnp.swapaxes(jnp.flip(w, (0, 1)), 2, 3)
    back = [
        (k - 1 - low, n + low - m)
        for k, n, m, (low, _) in zip(w.shape, size, g.shape[1:], pads, strict=False)
    ]
    return convolve(g, swapped, (1, 1), back)


def window_gradient(x: jax.Array, window, g: jax.Array, pads) -> jax.Array:
    """The gradient of a convolution of stride 1 to its window.

    Args:
      x: `[B, H, W, in]`.
      window: rows and columns.
      g: gradient to the output, `[B, H', W', out]`.
      pads: those of the convolution.

    Returns:
      `[rows, columns, in, out]`.
    """
    _, H, W, channels = x.shape
    features = g.shape[-1]
    rows, columns = window
    back = [
        (k - 1 - low, n + low - m, 0)
        for k, n, m, (low, _) in zip(window, (H, W), g.shape[1:], pads, strict=False)
    ]
    g = lax.pad(g, jnp.zeros((), g.dtype), [(0, 0, 0), *back, (0, 0, 0)])
    seen = jnp.concatenate([g[:, :, j : j + W] for j in reversed(range(columns))], -1)
    transposed = x.transpose(3, 0, 1, 2).reshape(channels, -1)
    parts = [
        _product(transposed, seen[:, i : i + H].reshape(-1, columns * features)).reshape(
            channels, columns, features
        )
        for i in reversed(range(rows))
    ]
    return jnp.stack(parts).transpose(0, 2, 1, 3).astype(x.dtype)
