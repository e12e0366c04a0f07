"""NIR's nodes as layers of this library, with their parameters."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sltt_jax.layers import Conv, Dense, at_least_float32
from sltt_jax.nir.graphs import MOST_VALUES, Node

Shape = tuple[int, ...]


class Layer(NamedTuple):
    """What a node does.

    Attributes:
      call: `call(xs, temporal_gradient)` within a network's `__call__`, on `[T, B, ...]`, channels last.
      params: its parameters, by the names of the layers that `call` makes.
      shape: of its outputs in one step, channels first as in NIR.
    """

    call: Callable[[jax.Array, Any], jax.Array]
    params: dict[str, Any]
    shape: Shape


def layer_of(node: Node, shape: Shape, *, map_shape: Shape | None, in_order: bool) -> Layer:
    """Makes the layer of a node that is no cell.

    Args:
      node: the node.
      shape: of what it is given, channels first.
      map_shape: for a dense layer, `[C, H, W]` of the map that it is given flattened channels last, as is
        usual here; None if it is not.
      in_order: for a flattening, channels first as in NIR, because what follows is no dense layer.

    Raises:
      ValueError: the node does not fit what it is given, or does what no layer here does; the message names
        it.
    """
    match node.kind:
        case "Input" | "Output":
            return Layer(lambda xs, _: xs, {}, shape)
        case "Linear" | "Affine":
            return _dense(node, shape, map_shape)
        case "Conv2d":
            return _conv(node, shape)
        case "Flatten":
            return _flatten(node, shape, in_order)
        case _:
            return _pool(node, shape)


def check_shape(node: Node, shape: Sequence[int]) -> Shape:
    """Returns the shape of a node's outputs, `[n]` or `[C, H, W]`, as whole numbers.

    Raises:
      ValueError: it is another one, or of too many numbers.
    """
    whole = tuple(int(n) for n in np.ravel(shape))
    if whole != tuple(np.ravel(shape)) or len(whole) not in (1, 3) or min(whole) < 1:
        raise node.wrong(f"must have outputs [n] or [C, H, W], got {tuple(np.ravel(shape).tolist())}")
    if math.prod(whole) > MOST_VALUES:
        raise node.wrong(f"must have at most {MOST_VALUES:,} outputs, got {whole}")
    return whole


def weights_of(node: Node, field: str) -> np.ndarray:
    """Returns a field in single or double precision."""
    array = node.values[field]
    return array.astype(np.float64 if array.dtype.itemsize > 4 and array.dtype.kind == "f" else np.float32)


def _dense(node, shape, map_shape):
    weight = weights_of(node, "weight")
    if weight.ndim != 2 or (weight.shape[1],) != shape:
        raise node.wrong(
            f"must have weights [outputs, {_given(shape)}] for its input {shape}, got {weight.shape}"
        )
    kernel = weight.T
    if map_shape is not None:
        kernel = np.moveaxis(kernel.reshape(*map_shape, -1), 0, 2).reshape(kernel.shape)
    params = {"kernel": kernel, **bias_of(node, len(weight))}
    dense = lambda xs, _: Dense(len(weight), use_bias="bias" in params, name=node.name)(xs)
    return Layer(dense, {node.name: params}, (len(weight),))


def _given(shape):
    return shape[0] if len(shape) == 1 else "n"


def bias_of(node: Node, n: int) -> dict[str, np.ndarray]:
    """Returns the bias of a node of `n` outputs as the parameter "bias", or none.

    Raises:
      ValueError: it has another number of entries.
    """
    if "bias" not in node.values:
        return {}
    bias = weights_of(node, "bias")
    if bias.shape != (n,):
        raise node.wrong(f"must have {n} numbers as its bias, got {bias.shape}")
    return {"bias": bias}


def _whole(node, field, lowest, count=2):
    """Whole numbers, for height and width."""
    value = np.ravel(node.values[field])
    whole = (value == np.floor(value)) & (value >= lowest) & (value <= MOST_VALUES)
    if value.size not in (1, count) or not whole.all():
        raise node.wrong(f"must have whole numbers from {lowest} on as its {field}, got {value.tolist()}")
    return tuple(int(n) for n in np.broadcast_to(value, count))


def _map(node, shape):
    if len(shape) != 3:
        raise node.wrong(f"must be given a map [C, H, W], got {shape}")
    return shape


def _conv(node, shape):
    channels, *size = _map(node, shape)
    weight, (groups,) = weights_of(node, "weight"), _whole(node, "groups", 1, 1)
    if weight.ndim != 4 or weight.shape[1] * groups != channels or len(weight) % groups:
        raise node.wrong(
            f"must have weights [outputs, {channels} / groups, height, width] for its input {shape} in "
            f"{groups} groups, got {weight.shape}"
        )
    strides, dilation, padding = (
        _whole(node, "stride", 1),
        _whole(node, "dilation", 1),
        node.values["padding"],
    )
    if isinstance(padding, str):
        padding = padding.upper()
        if padding == "SAME" and strides != (1, 1):
            raise node.wrong(f"must have strides of 1 with the padding 'same', got {strides}")
    else:
        padding = tuple((n, n) for n in _whole(node, "padding", 0))
    reach = [(n - 1) * d + 1 for n, d in zip(weight.shape[2:], dilation, strict=True)]
    pads = jax.lax.padtype_to_pads(size, reach, strides, padding) if isinstance(padding, str) else padding
    size = _windows(node, shape, reach, strides, pads)
    kernel = weight.transpose(2, 3, 1, 0)
    params = {"kernel": kernel, **bias_of(node, len(weight))}
    options = {
        "strides": strides,
        "padding": padding,
        "kernel_dilation": dilation,
        "feature_group_count": groups,
    }
    conv = lambda xs, _: Conv(len(weight), weight.shape[2:], **options, name=node.name)(xs)
    return Layer(conv, {node.name: params}, check_shape(node, (len(weight), *size)))


def _windows(node, shape, window, strides, pads):
    """Height and width of what windows slide to."""
    channels, *size = shape
    padded = [n + before + after for n, (before, after) in zip(size, pads, strict=True)]
    check_shape(node, (channels, *padded))
    if any(n < w for n, w in zip(padded, window, strict=True)):
        raise node.wrong(
            f"has windows of {tuple(window)}, larger than its map with the border, {tuple(padded)}"
        )
    return [(n - w) // stride + 1 for n, w, stride in zip(padded, window, strides, strict=True)]


def _pool(node, shape):
    channels, *size = _map(node, shape)
    window, strides, padding = (
        _whole(node, f, low) for f, low in (("kernel_size", 1), ("stride", 1), ("padding", 0))
    )
    size = _windows(node, shape, window, strides, [(n, n) for n in padding])
    factor = 1 if node.kind == "AvgPool2d" else math.prod(window)

    def pool(xs, _):
        border = ((0, 0), (0, 0), *((n, n) for n in padding), (0, 0))  # its zeros count, as in PyTorch
        ys = nn.avg_pool(jnp.pad(at_least_float32(xs), border), window, strides)
        return ys if factor == 1 else factor * ys

    return Layer(pool, {}, check_shape(node, (channels, *size)))


def _flatten(node, shape, in_order):
    (start,), (end,) = (_axis(node, field) for field in ("start_dim", "end_dim"))
    first, last = start % len(shape), end % len(shape)
    if len(shape) == 3 and (first, last) != (0, 2):
        raise node.wrong(f"must flatten all of {shape}, not the axes {start} to {end} of it")
    order = lambda xs: jnp.moveaxis(xs, -1, 2) if in_order else xs
    flatten = lambda xs, _: order(xs).reshape(*xs.shape[:2], -1)
    return Layer(flatten, {}, (math.prod(shape),))


def _axis(node, field):
    value = np.ravel(node.values[field])
    if value.size != 1 or value[0] not in range(-3, 3):
        raise node.wrong(f"must have an axis as its {field}, got {value.tolist()}")
    return value.astype(int).tolist()


class Bias(nn.Module):
    """Adds a constant, `[n]`, to currents `[T, B, n]`."""

    @nn.compact
    def __call__(self, xs: jax.Array) -> jax.Array:
        """Returns `xs` with the constant added."""
        return xs + self.param("bias", nn.initializers.zeros, xs.shape[-1:])[None, None]
