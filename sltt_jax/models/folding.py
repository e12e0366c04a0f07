"""Batch normalisation and weight standardisation folded into the weights, for devices that have neither.

params, state = fold_batch_norm(model, params, state, x)
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sltt_jax.blocks import PyTree
from sltt_jax.layers import BATCH_STATS, ScaledWSConv, StepBatchNorm, standardised
from sltt_jax.models.chain import WEIGHTS, Call, calls

__all__ = ["fold_batch_norm", "plain_weights"]


def fold_batch_norm(model: nn.Module, params: PyTree, state: PyTree, x: jax.Array) -> tuple[PyTree, PyTree]:
    """Folds the running statistics of a trained network into the weights before them.

        scale (W x + b - mean) / sqrt(var + epsilon) + bias = W' x + bias'
        W' = g W        bias' = bias + g (b - mean)        g = scale / sqrt(var + epsilon), per output channel

    The network stays the same, and computes the same in evaluation (`train=False`) but for rounding: its
    `StepBatchNorm` have the mean 0, the scale 1 and the variance `1 - epsilon` then, and add `bias'`. So its
    kernels are those that a device has, to be rounded or exported. It is not for training, where the
    statistics are of each step and nothing can be folded.

    Args:
      model: the network.
      params: its parameters.
      state: its state, with the running statistics.
      x: the input of one step, `[B, ...]`; only its shape matters.

    Returns:
      Parameters and state, new arrays in place of those that change.

    Raises:
      ValueError: a normalisation does not follow a convolution or dense layer, or that one standardises its
        weights; or `state` has no running statistics for it.
    """
    return fold_layers(calls(model, x).layers, params, state)


def fold_layers(layers: Sequence[Call], params: PyTree, state: PyTree) -> tuple[PyTree, PyTree]:
    """Does what `fold_batch_norm` does, for a network whose layers were listed by `models.chain.calls`."""
    norms = [layer for layer in layers if isinstance(layer.module, StepBatchNorm)]
    for norm, before in [(norm, _weights_before(norm, layers)) for norm in norms]:
        params, state = _fold(norm, before, params, state)
    return params, state


def plain_weights(layer: Call, params: PyTree) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns kernel and bias of a layer of weights, standardised if it standardises; None without a bias.

    Args:
      layer: the layer, as `models.chain.calls` has it.
      params: parameters of the whole network.
    """
    own = at_path(params, layer.path)
    kernel = own["kernel"]
    if isinstance(layer.module, ScaledWSConv):
        kernel = standardised(jnp.asarray(kernel), jnp.asarray(own["gain"]))
    return np.asarray(kernel), np.asarray(own["bias"]) if "bias" in own else None


def _weights_before(norm, layers):
    for layer in layers:
        if layer.answer.shape == norm.given.shape and np.array_equal(layer.answer, norm.given):
            if isinstance(layer.module, WEIGHTS) and not isinstance(layer.module, ScaledWSConv):
                return layer
            raise ValueError(
                f"{norm.name} follows {layer.name} ({type(layer.module).__name__}): a normalisation can only "
                "be folded into kernels that are used as they are"
            )
    raise ValueError(
        f"{norm.name} normalises what no single layer puts out, such as a sum: there are no weights for it "
        "to be folded into"
    )


def _fold(norm, layer, params, state):
    own, weights = at_path(params, norm.path), at_path(params, layer.path)
    if BATCH_STATS not in state:
        raise ValueError(
            f"{norm.name} has no running statistics in the state, and those of single steps cannot be "
            "folded: give the state that training has left"
        )
    statistics = at_path(state[BATCH_STATS], norm.path)
    exact = lambda a: np.asarray(a, np.float64)
    gain = exact(own["scale"]) / np.sqrt(exact(statistics["var"]) + norm.module.epsilon)
    bias = exact(own["bias"]) + gain * (exact(weights.get("bias", 0.0)) - exact(statistics["mean"]))
    like = lambda value, old: jnp.asarray(np.broadcast_to(value, old.shape), old.dtype)
    folded = {"kernel": like(exact(weights["kernel"]) * gain, weights["kernel"])}
    if "bias" in weights:
        folded["bias"] = like(0.0, weights["bias"])
    params = _with(params, layer.path, weights | folded)
    params = _with(params, norm.path, {"scale": like(1.0, own["scale"]), "bias": like(bias, own["bias"])})
    neutral = {
        "mean": like(0.0, statistics["mean"]),
        "var": like(1 - norm.module.epsilon, statistics["var"]),
    }
    return params, {**state, BATCH_STATS: _with(state[BATCH_STATS], norm.path, neutral)}


def at_path(tree: PyTree, path: Sequence[str]) -> PyTree:
    """Returns what is at a path of nested dicts, the parameters of a layer for instance.

    Raises:
      ValueError: there is nothing.
    """
    at = tree
    for name in path:
        if name not in at:
            raise ValueError(f"there is nothing for the layer {'/'.join(path)} in what has {sorted(tree)}")
        at = at[name]
    return at


def _with(tree, path, value):
    first, *rest = path
    return {**tree, first: _with(tree[first], rest, value) if rest else value}
