"""Convolution whose gradient is fast on a CPU inside of `lax.scan` and `lax.cond`.

XLA's CPU compiler brings convolutions into the form its kernels want only in the entry computation. The two
gradients of a convolution are not in that form, so in the body of a loop they fall to a naive one, a hundred
times slower. Here both are written as forward convolutions of that form (channels last, no reversed window):

    dx = conv(g dilated by the stride, w reversed in space with its channels swapped)
    dw = conv(x with channels as batch, g with batch as input channels, dilated by the stride)

The second is slow for a few samples. Their dw, and that of a window of one entry, is instead a matrix product
for every entry (i, j) of the window, of x shifted by (i, j) and g. Where it pays, the convolution and dx
take fewer multiplications (`winograd.py`).

On other platforms both are left to XLA, which maps them to the vendor's kernels.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sltt_jax.cpu import winograd

# Samples up to which the gradient of a window is a sum of matrix products.
_FEW_SAMPLES = 3

# Columns up to which the products of all entries of a window are one.
_FEW_COLUMNS = 256

# Entries of a window up to which each is dealt with by itself.
_MOST_PRODUCTS = 49


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides,
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count: int = 1,
    **kwargs,
) -> jax.Array:
    """`lax.conv_general_dilated`, for the same-named field of `flax.linen.Conv`.

    Channels last, one group, undilated: the convolution of this module. Any other is handed on to `lax`,
    whose gradient is slow in a loop on the CPU.

    Args:
      lhs: `[B, *spatial, in]`.
      rhs: `[*window, in, out]`.
      window_strides: one a spatial dimension.
      padding: "SAME", "VALID" or a pair (low, high) a spatial dimension.
      lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count: as in `lax`.
      **kwargs: `precision` and what else `lax` takes.

    Returns:
      `[B, *spatial, out]`.
    """
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    last = lhs.ndim - 1
    channels_last = (0, last, *range(1, last))
    window_last = (last, last - 1, *range(last - 1))
    plain = (
        numbers == lax.ConvDimensionNumbers(channels_last, window_last, channels_last)
        and feature_group_count == 1
        and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
        and not {k for k, v in kwargs.items() if v is not None} - {"precision"}
        and lhs.dtype == rhs.dtype
    )
    if not plain:
        return lax.conv_general_dilated(
            lhs, rhs, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers,
            feature_group_count, **kwargs,
        )  # fmt: skip
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:-1], rhs.shape[:-2], window_strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    return _conv(lhs, rhs, tuple(window_strides), pads, kwargs.get("precision"))


def _forward_conv(x, w, strides, pads, precision, x_dilation=None, w_dilation=None, padded_first=False):
    spatial = "".join("HWD"[: x.ndim - 2])
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    dilation = x_dilation or (1,) * len(spatial)
    large_window = math.prod(w.shape[:-2]) > math.prod(x.shape[1:-1])
    if padded_first or large_window or min(min(p) for p in pads) < 0:
        # XLA would swap the operands where the window is larger than the input, and its CPU kernels take
        # neither that nor negative padding; a pad that it cannot merge with the convolution avoids both.
        config = [(0, 0, 0), *((*p, d - 1) for p, d in zip(pads, dilation, strict=True)), (0, 0, 0)]
        x = lax.optimization_barrier(lax.pad(x, jnp.zeros((), x.dtype), config))
        pads, dilation = "VALID", None
    return lax.conv_general_dilated(
        x, w, strides, pads, dilation, w_dilation, dimension_numbers=numbers, precision=precision
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x, w, strides, pads, precision):
    direct = partial(_forward_conv, strides=strides, pads=pads, precision=precision)
    if winograd.applies(x, w, strides, pads, precision):
        on_cpu = partial(winograd.convolve, pads=pads)
    elif _keeps_shape(x, w, strides, pads):
        on_cpu = partial(_safe_conv, pads=pads, precision=precision)
    else:
        return direct(x, w)
    return lax.platform_dependent(x, w, cpu=on_cpu, default=direct)


def _keeps_shape(x, w, strides, pads):
    sizes = zip(w.shape, pads, strict=False)
    return w.shape[-2] == w.shape[-1] and max(strides) == 1 and all(sum(p) == k - 1 for k, p in sizes)


def _safe_conv(x, w, pads, precision):
    """Convolves to the shape of the input, which with `tune_xla` needs care.

    XLA draws it into the loop of another operation with that input and output shape. It does not if it reads
    another array, the padded one, or is a matrix product.
    """
    if math.prod(w.shape[:-2]) == 1:
        return lax.dot_general(
            x, w.reshape(w.shape[-2:]), (((x.ndim - 1,), (0,)), ((), ())), precision=precision
        )
    return _forward_conv(x, w, (1,) * len(pads), pads, precision, padded_first=True)


def _conv_fwd(x, w, strides, pads, precision):
    return _conv(x, w, strides, pads, precision), (x, w)


def _conv_bwd(strides, pads, precision, saved, g):
    """Both gradients; the one that nobody uses is dead code to the compiler."""

    def canonical(x, w, g):
        dx = _input_gradient(x, w, g, strides, pads, precision)
        return dx, _window_gradient(x, w, g, strides, pads, precision)

    def transposed(x, w, g):
        (dx,) = jax.linear_transpose(lambda x: _forward_conv(x, w, strides, pads, precision), x)(g)
        (dw,) = jax.linear_transpose(lambda w: _forward_conv(x, w, strides, pads, precision), w)(g)
        return dx, dw

    return lax.platform_dependent(*saved, g, cpu=canonical, default=transposed)


_conv.defvjp(_conv_fwd, _conv_bwd)


def _at_most(bound, size):
    """Returns False for a size that is symbolic, as in an exported program, and so is no number."""
    return isinstance(size, int) and size <= bound


def _input_gradient(x, w, g, strides, pads, precision):
    if winograd.applies(x, w, strides, pads, precision):
        return winograd.input_gradient(w, g, pads)
    entries, positions = math.prod(w.shape[:-2]), math.prod(g.shape[:-1])
    # With more channels than positions, turning the window around would be most of the work.
    if entries == 1 or (_at_most(w.shape[-1], positions) and entries <= _MOST_PRODUCTS):
        return _input_gradient_as_product(x, w, g, strides, pads, precision)
    return _input_gradient_as_convolution(x, w, g, strides, pads, precision)


def _input_gradient_as_product(x, w, g, strides, pads, precision):
    """Sums what every entry of the window contributes, which is one product, where it belongs."""
    *window, channels, features = w.shape
    spatial = g.shape[1:-1]
    parts = lax.dot_general(
        g.reshape(-1, features),
        w.reshape(-1, features),
        (((1,), (1,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.promote_types(g.dtype, jnp.float32),
    ).reshape(*g.shape[:-1], -1, channels)
    zero = total = jnp.zeros((), parts.dtype)
    for i, start in enumerate(np.ndindex(*window)):
        ends = []
        for n, m, k, s, (low, _) in zip(x.shape[1:], spatial, start, strides, pads, strict=False):
            ends.append((k - low, n + low - k - (m - 1) * s - 1, s - 1))
        total += lax.pad(parts[..., i, :], zero, [(0, 0, 0), *ends, (0, 0, 0)])
    return total.astype(g.dtype)


def _input_gradient_as_convolution(x, w, g, strides, pads, precision):
    axes = range(w.ndim - 2)
    swapped = jnp.swapaxes(jnp.flip(w, axes), -1, -2)
    back = []
    for n, m, k, s, (low, _) in zip(x.shape[1:], g.shape[1:], w.shape, strides, pads, strict=False):
        dilated = (m - 1) * s + 1
        back.append((k - 1 - low, n + low - dilated))
    if _keeps_shape(g, swapped, strides, back):
        return _safe_conv(g, swapped, back, precision)
    return _forward_conv(g, swapped, (1,) * len(axes), back, precision, x_dilation=strides)


def _window_gradient(x, w, g, strides, pads, precision):
    entries = math.prod(w.shape[:-2])
    if entries == 1 or (_at_most(_FEW_SAMPLES, x.shape[0]) and entries <= _MOST_PRODUCTS):
        return _window_gradient_as_products(x, w, g, strides, pads, precision)
    return _window_gradient_as_convolution(x, w, g, strides, pads, precision)


def _window_gradient_as_products(x, w, g, strides, pads, precision):
    *window, _, features = w.shape
    spatial = g.shape[1:-1]
    ends = []
    for n, m, k, s, (low, _) in zip(x.shape[1:], spatial, window, strides, pads, strict=False):
        ends.append((low, (m - 1) * s + k - n - low, 0))
    padded = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *ends, (0, 0, 0)])
    seen = []  # what each entry of the window sees
    for start in np.ndindex(*window):
        stops = (k + (m - 1) * s + 1 for k, m, s in zip(start, spatial, strides, strict=True))
        part = lax.slice(padded, (0, *start, 0), (x.shape[0], *stops, x.shape[-1]), (1, *strides, 1))
        seen.append(part.reshape(-1, part.shape[-1]))
    if len(seen) * x.shape[-1] <= _FEW_COLUMNS:  # one product is not too wide, and many are too narrow
        seen = [jnp.concatenate(seen, -1)]
    g = g.reshape(-1, features)
    parts = [lax.dot_general(part, g, (((0,), (0,)), ((), ())), precision=precision) for part in seen]
    return jnp.concatenate(parts).reshape(w.shape)


def _window_gradient_as_convolution(x, w, g, strides, pads, precision):
    spatial = tuple(range(1, x.ndim - 1))
    axes = (x.ndim - 1, *spatial, 0)
    ends = []
    for n, m, k, s, (low, _) in zip(x.shape[1:], g.shape[1:], w.shape, strides, pads, strict=False):
        dilated = (m - 1) * s + 1
        ends.append((low, k - 1 + dilated - n - low))
    dw = _forward_conv(
        x.transpose(axes),
        g.transpose((*spatial, 0, g.ndim - 1)),
        (1,) * len(spatial),
        ends,
        precision,
        w_dilation=strides,
    )
    return dw.transpose((*spatial, 0, dw.ndim - 1))
