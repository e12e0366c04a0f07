"""Linen networks as NIR graphs."""

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import numpy as np

from sltt_jax.blocks import PyTree
from sltt_jax.cell_layers import Cells, Recurrent
from sltt_jax.models.chain import calls, chain
from sltt_jax.models.folding import at_path, fold_layers
from sltt_jax.nir.cells import cell_of
from sltt_jax.nir.weights import effective_weights, weights_node

if TYPE_CHECKING:
    import nir


def to_nir(
    model: nn.Module,
    params: PyTree,
    state: PyTree,
    x: jax.Array,
    *,
    dt: float = 1e-4,
    fold_tau: bool = True,
) -> "nir.NIRGraph":
    """Makes the NIR graph of a trained network, as it is in evaluation.

        tau v' = v_leak - v + r I
        v[t] = (1 - dt/tau) v[t-1] + (dt/tau) (v_leak + r I[t])             in steps of dt, by Euler's method

    is our neuron, `u[t] = (1 - 1/tau) v[t-1] + x[t]`, with a time constant of `tau dt` seconds and either
    `r = tau` or, if the weights before it are multiplied by `tau`, `r = 1`. Batch normalisation and weight
    standardisation are folded into the weights. Maps are channels first in NIR, and the weights of a dense
    layer after one are put in that order.

    Args:
      model: layers one after the other: dense, convolutions of maps, `StepBatchNorm`, `LIF`, `LI`, `Synaptic`
        and `Recurrent` around one of these; between them pooling by means or sums, and flattening.
      params: its parameters.
      state: its state, with the running statistics.
      x: the input of one step, `[B, ...]`; only its shape matters.
      dt: seconds a step; simulators take 1e-4 unless they are told, and snnTorch takes no other.
      fold_tau: multiply the weights before `LIF` and `LI` by `tau`, for the `r = 1` that snnTorch,
        spikingjelly, norse and jaxpike take alike. If not, weights stay as they are to the last bit, with
        `r = tau`, which snnTorch and spikingjelly take. Neurons with `decay_input=True` have `r = 1` by
        themselves, and `Synaptic` has `r = tau` and `w_in = tau_syn` always.

    Returns:
      The graph; weights have the type of the parameters. Its nodes are named as the layers are, with points
      for slashes, and what follows a layer after that: "LIF_0.pool", "LIF_0.flatten". A `Recurrent` is a
      graph of two nodes, "cell" and "w_rec".

    Raises:
      ModuleNotFoundError: the package nir is not installed.
      ValueError: the network is not such a chain, or has what NIR cannot say, such as a soft reset; the
        message names the layer.
    """
    import nir

    if not 0 < dt < np.inf:
        raise ValueError(f"dt must be a positive number of seconds, got {dt}")
    called = calls(model, x)
    links, layers = chain(called), called.layers
    params, _ = fold_layers(layers, params, state)
    cells = {
        layer.path: cell_of(layer, params) for layer in layers if isinstance(layer.module, Cells | Recurrent)
    }
    weights = effective_weights(layers, cells, params, fold_tau=fold_tau)

    shape, last = x.shape[1:], "input"
    nodes: dict[str, Any] = {"input": nir.Input({"input": _type(shape)})}
    edges = []

    def append(name, node):
        nonlocal last
        if name in nodes:
            raise ValueError(f"two nodes of the graph would be named {name!r}: rename a layer")
        nodes[name] = node
        edges.append((last, name))
        last = name

    for between, layer in links:
        before, map_shape = last, None
        if between.pool is not None:
            pool, n = nir.AvgPool2d if between.pool == "avg" else nir.SumPool2d, between.window
            append(f"{before}.pool", pool(np.array([n, n]), np.array([n, n]), np.array([0, 0])))
            shape = shape[0] // n, shape[1] // n, shape[2]
        if between.flatten:
            if layer is None or not isinstance(layer.module, nn.Dense):
                raise ValueError(
                    f"{layer.name if layer else 'the output'} is given a flattened map, in another order "
                    "than NIR's: a dense layer must follow, whose weights can be put in that order"
                )
            append(f"{before}.flatten", nir.Flatten({"input": _type(shape)}, 0, -1))
            map_shape, shape = shape, (int(np.prod(shape)),)
        if layer is None:
            break
        name, shape = ".".join(layer.path), layer.answer.shape
        if layer.path in weights:
            append(name, weights_node(nir, layer, weights[layer.path], map_shape))
        elif layer.path in cells:
            node = cells[layer.path].node(nir, dt, fold_tau=fold_tau)
            if isinstance(layer.module, Recurrent):
                kernel = np.asarray(at_path(params, layer.path)["kernel"])
                if fold_tau:
                    kernel = (kernel * cells[layer.path].folded_gain()).astype(kernel.dtype)
                node = _recurrent(nir, node, kernel)
            append(name, node)
    append("output", nir.Output({"output": _type(shape)}))
    return nir.NIRGraph(nodes, edges)


def _recurrent(nir, cell, kernel):
    """Makes the graph of recurrent cells, a node like any other: snnTorch 1.0 reads it no other way."""
    n = np.array(kernel.shape[:1])
    nodes = {"input": nir.Input(n), "cell": cell, "w_rec": nir.Linear(kernel.T), "output": nir.Output(n)}
    return nir.NIRGraph(nodes, [("input", "cell"), ("cell", "w_rec"), ("w_rec", "cell"), ("cell", "output")])


def _type(shape) -> np.ndarray:
    """Returns a shape `[..., C]` as NIR has it, channels first."""
    return np.array([shape[-1], *shape[:-1]])
