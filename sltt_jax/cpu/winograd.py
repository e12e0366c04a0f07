"""Convolutions of 3x3 windows with 2.25 times fewer multiplications, for a CPU.

Winograd's minimal filtering F(2x2, 3x3), as Lavin and Gray (2016, arXiv 1509.09308) use it: every 2x2 outputs
and the 4x4 inputs d that they see are a tile, and with the matrices of their equation (7)

    y = A^T ((G w G^T) * (B^T d B)) A

The product in the middle, of 16 entries a tile in place of 36, is elementwise over the entries, and over
channels and tiles a matrix product, which is what a CPU does best. The transformations are additions, of
spikes exact ones. In float32 the result is about as exact as that of a direct convolution.
"""

import jax
import jax.numpy as jnp
from jax import lax

# Fewer channels make narrow products, and fewer outputs do not repay the transformation of the window.
_LEAST_CHANNELS = 32
_LEAST_POSITIONS = 256


def applies(x: jax.Array, w: jax.Array, strides, pads, precision) -> bool:
    """Returns whether `convolve` computes this convolution, and is likely to be faster than a direct one."""
    if x.ndim != 4 or w.shape[:2] != (3, 3) or strides != (1, 1) or x.dtype != jnp.float32:
        return False
    if precision not in (None, lax.Precision.DEFAULT):  # somebody counts on every bit
        return False
    height, width = (n + sum(p) - 2 for n, p in zip(x.shape[1:3], pads, strict=True))
    positions = x.shape[0] * height * width
    # A symbolic size, as in an exported program, is no number.
    return (
        isinstance(positions, int) and positions >= _LEAST_POSITIONS and min(w.shape[2:]) >= _LEAST_CHANNELS
    )


def convolve(x: jax.Array, w: jax.Array, pads) -> jax.Array:
    """Convolves with stride 1.

    Args:
      x: `[B, H, W, in]`.
      w: `[3, 3, in, out]`.
      pads: (low, high) of height and width.

    Returns:
      `[B, H + low + high - 2, W + low + high - 2, out]`.
    """
    return _convolve(x, _transformed_window(w), 0, pads)


def input_gradient(w: jax.Array, g: jax.Array, pads) -> jax.Array:
    """Returns the gradient of `convolve` to its input.

    Args:
      w: `[3, 3, in, out]`.
      g: gradient to the output, `[B, h, w, out]`.
      pads: those of the convolution.

    Returns:
      `[B, H, W, in]`.
    """
    u = _transformed_window(w)
    flipped = [[u[a][b] for b in (3, 1, 2, 0)] for a in (3, 1, 2, 0)]  # what G makes of the flipped window
    return _convolve(g, flipped, 1, [(2 - low, 2 - high) for low, high in pads])


def _along_both(transform, entries):
    """Applies `transform` to the columns of a square of entries, and then to its rows."""
    columns = [transform(*column) for column in zip(*entries, strict=True)]
    return [transform(*row) for row in zip(*columns, strict=True)]


def _transformed_window(w):
    """G w G^T: entries of 4x4, each `[in, out]`."""

    def along(a, b, c):
        outer, half = (a + c) * 0.5, b * 0.5
        return a, outer + half, outer - half, c

    return _along_both(along, [[w[i, j] for j in range(3)] for i in range(3)])


def _transformed_tiles(x, height, width):
    """B^T d B of inputs `[B, 2 height + 2, 2 width + 2, in]`: entries of 4x4, each `[tiles, in]`."""

    def along(a, b, c, d):
        return a - c, b + c, c - b, b - d

    def seen(i, j):
        return lax.slice(
            x, (0, i, j, 0), (x.shape[0], i + 2 * height - 1, j + 2 * width - 1, x.shape[3]), (1, 2, 2, 1)
        ).reshape(-1, x.shape[3])

    return _along_both(along, [[seen(i, j) for j in range(4)] for i in range(4)])


def _outputs(m):
    """A^T m A: entries of 2x2."""

    def along(a, b, c, d):
        return a + b + c, b - c - d

    return _along_both(along, m)


def _convolve(x, u, contracted, pads):
    """Convolves with a transformed window `u`; axis `contracted` of its entries is the channels of `x`."""
    B, *spatial, _ = x.shape
    rows, columns = (n + sum(p) - 2 for n, p in zip(spatial, pads, strict=True))
    height, width = -(-rows // 2), -(-columns // 2)
    features = u[0][0].shape[1 - contracted]
    ends = [
        (low, 2 * n + 2 - size - low, 0)
        for (low, _), n, size in zip(pads, (height, width), spatial, strict=True)
    ]

    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *ends, (0, 0, 0)])
    v = _transformed_tiles(padded, height, width)
    m = [
        [lax.dot_general(v[a][b], u[a][b], (((1,), (contracted,)), ((), ()))) for b in range(4)]
        for a in range(4)
    ]
    y = [[e.reshape(B, height, 1, width, 1, features) for e in row] for row in _outputs(m)]
    y = jnp.concatenate([jnp.concatenate(row, 4) for row in y], 2)
    return y.reshape(B, 2 * height, 2 * width, features)[:, :rows, :columns]
