"""Layers of weights of this library as NIR's nodes."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np
from jax import lax

from sltt_jax.blocks import PyTree
from sltt_jax.layers import StepBatchNorm
from sltt_jax.models.chain import WEIGHTS, Call
from sltt_jax.models.folding import at_path, plain_weights
from sltt_jax.nir.cells import Cell

Path = tuple[str, ...]
Weights = tuple[np.ndarray, np.ndarray | None]


def effective_weights(
    layers: Sequence[Call], cells: Mapping[Path, Cell], params: PyTree, *, fold_tau: bool
) -> dict[Path, Weights]:
    """Returns kernel and bias of every layer of weights, with all in them that NIR has no nodes for.

    Args:
      layers: of a chain, in their order.
      cells: those of them that are cells, by their path.
      params: of the whole network, after `fold_batch_norm`.
      fold_tau: as for `to_nir`.

    Raises:
      ValueError: cells have no weights before them that could be multiplied by `tau`.
    """
    weights, latest = {}, None
    for layer in layers:
        if isinstance(layer.module, WEIGHTS):
            latest = layer.path
            weights[latest] = plain_weights(layer, params)
        elif isinstance(layer.module, StepBatchNorm):  # it has only a bias left
            kernel, bias = weights[latest]
            more = np.asarray(at_path(params, layer.path)["bias"])
            weights[latest] = kernel, more if bias is None else bias + more
        elif fold_tau and layer.path in cells:
            gain = cells[layer.path].folded_gain()
            if latest is None and np.any(gain != 1.0):
                raise ValueError(
                    f"{layer.name} has no layer of weights before it for its tau to be folded into: use "
                    "fold_tau=False"
                )
            if latest is not None:
                times = lambda a: None if a is None else (a * gain).astype(a.dtype)  # noqa: B023
                weights[latest] = times(weights[latest][0]), times(weights[latest][1])
            latest = None
    return weights


def weights_node(nir: Any, layer: Call, weights: Weights, map_shape: Sequence[int] | None) -> Any:
    """Makes the node of a layer of weights, of a module `nir`.

    Args:
      nir: the module.
      layer: the layer.
      weights: its kernel and bias.
      map_shape: `[H, W, C]` that were flattened before a dense layer; None if none were.

    Raises:
      ValueError: NIR has no such layer.
    """
    kernel, bias = weights
    if not isinstance(layer.module, nn.Dense):
        return _conv(nir, layer, kernel, bias)
    if layer.given.ndim != 1:
        raise ValueError(
            f"{layer.name} is a dense layer on a map {layer.given.shape}: make it a convolution of 1x1"
        )
    if map_shape is not None:
        kernel = np.moveaxis(kernel.reshape(*map_shape, -1), 2, 0).reshape(kernel.shape)
    return nir.Linear(kernel.T) if bias is None else nir.Affine(kernel.T, bias)


def _conv(nir, layer, kernel, bias):
    module = layer.module
    if kernel.ndim != 4:
        raise ValueError(f"{layer.name} must be a convolution of maps [H, W, C], got a kernel {kernel.shape}")
    if kernel.shape[0] != kernel.shape[1]:
        raise ValueError(f"{layer.name} has a window of {kernel.shape[:2]}: nir takes only square ones")
    if getattr(module, "feature_group_count", 1) != 1:
        raise ValueError(f"{layer.name} has groups of channels: nir takes only one group")
    pair = lambda value: (value, value) if isinstance(value, int) else tuple(value or (1, 1))
    strides, dilation = pair(module.strides), pair(getattr(module, "kernel_dilation", 1))
    if getattr(module, "input_dilation", 1) not in (1, None, (1, 1)):
        raise ValueError(f"{layer.name} dilates its input, for which NIR has no node")
    return nir.Conv2d(
        input_shape=layer.given.shape[:2],
        weight=kernel.transpose(3, 2, 0, 1),
        stride=strides,
        padding=_padding(layer, kernel.shape[:2], strides, dilation),
        dilation=dilation,
        groups=1,
        bias=np.zeros(kernel.shape[-1], kernel.dtype) if bias is None else bias,
    )


def _padding(layer, window, strides, dilation):
    """Returns the zeros on each side of height and width."""
    padding = layer.module.padding
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(f"{layer.name} must pad with zeros, got {padding!r}")
        reach = [(n - 1) * d + 1 for n, d in zip(window, dilation, strict=True)]
        padding = lax.padtype_to_pads(layer.given.shape[:2], reach, strides, padding)
    elif isinstance(padding, int):
        padding = (padding, padding)
    sides = [(p, p) if isinstance(p, int) else tuple(p) for p in padding]
    if any(before != after for before, after in sides):
        raise ValueError(f"{layer.name} pads by {sides}, before and after; NIR's are the same on both sides")
    return tuple(before for before, _ in sides)
