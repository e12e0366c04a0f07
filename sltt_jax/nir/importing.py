"""NIR graphs as Linen networks, and as the functions that rules take."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from sltt_jax import functional
from sltt_jax.blocks import Apply, PyTree
from sltt_jax.layers import check_input
from sltt_jax.nir.file import read_graph
from sltt_jax.nir.graphs import CELLS, DENSE, checked, raw_graph
from sltt_jax.nir.layers import check_shape, layer_of
from sltt_jax.nir.neurons import cell_of
from sltt_jax.surrogate import Surrogate, triangle

if TYPE_CHECKING:
    import nir


_TRIANGLE = triangle()


class NIRNetwork(nn.Module):
    """Network of a NIR graph, made by `model_from_nir`; its layers are named as the nodes are.

    Attributes:
      shape: of its input in one step, channels last.
      steps: name, sources and call of every node, in order.
    """

    shape: tuple[int, ...]
    steps: tuple[tuple[str, tuple[str, ...], Callable], ...]

    @nn.compact
    def __call__(self, xs: jax.Array, *, train: bool, temporal_gradient: bool) -> jax.Array:
        """Outputs `[T, B, ...]` of inputs `[T, B, ...]`, channels last; nothing depends on `train`."""
        del train
        check_input(xs, "T B H W C" if len(self.shape) == 3 else "T B features")
        if xs.shape[2:] != self.shape:
            raise ValueError(
                f"the graph takes inputs [T, B, {', '.join(map(str, self.shape))}], got {xs.shape}"
            )
        outputs = {}
        for name, sources, call in self.steps:
            given = sum(outputs[source] for source in sources[1:]) + outputs[sources[0]] if sources else xs
            outputs[name] = call(given, temporal_gradient)
        return outputs[self.steps[-1][0]]


def from_nir(
    graph: "nir.NIRGraph | str | os.PathLike",
    *,
    batch_size: int = 1,
    dt: float = 1e-4,
    surrogate: Surrogate = _TRIANGLE,
) -> tuple[Apply, PyTree, PyTree]:
    """Makes a network of a NIR graph, to be run, and trained by any rule.

    Args:
      graph: a graph, or the path of a `.nir` file, neither of which need be trusted.
      batch_size: samples that the state is for.
      dt: seconds a step, those for which the graph was made; nothing in it says so.
      surrogate: of the neurons that spike, of which NIR knows nothing.

    Returns:
      `(apply, params, state)`, as rules take them. Inputs and outputs are `[T, B, ...]`, channels last. The
      parameters are the weights, by the names of their nodes, in the layout of this library; time constants
      and thresholds are no parameters.

    Raises:
      TypeError: `graph` is none.
      ValueError: it holds what is no network of this library; the message names the node, and the file.
      OSError: there is no such file.
      ModuleNotFoundError: the package nir, which reads files, is not installed.
    """
    model, params = model_from_nir(graph, dt=dt, surrogate=surrogate)
    state = functional.at_rest(model, {}, jnp.zeros((batch_size, *model.shape)))
    return functional.applier(model, train=False), params, state


def model_from_nir(
    graph: "nir.NIRGraph | str | os.PathLike", *, dt: float = 1e-4, surrogate: Surrogate = _TRIANGLE
) -> tuple[NIRNetwork, PyTree]:
    """Makes the Linen network of a NIR graph, for `analysis.recording` and whatever else takes a network.

    Args and what is raised are those of `from_nir`.

    Returns:
      The network, and its parameters.
    """
    if isinstance(graph, str | os.PathLike):
        try:
            return _model(read_graph(graph), dt, surrogate)
        except ValueError as error:
            raise error if str(error).startswith(str(graph)) else ValueError(f"{graph}: {error}") from error
    return _model(raw_graph(graph), dt, surrogate)


def _model(raw, dt, surrogate):
    if not 0 < dt < float("inf"):
        raise ValueError(f"dt must be a positive number of seconds, got {dt}")
    nodes = checked(raw)
    kinds = {node.name: node.kind for node in nodes}
    readers = {name: [node for node in nodes if name in node.sources] for name in kinds}
    # Maps that only dense layers get are flattened as they are, and the weights put in that order.
    ours = {
        name
        for name, kind in kinds.items()
        if kind == "Flatten"
        and all(reader.kind in DENSE and reader.sources == (name,) for reader in readers[name])
    }
    given, shapes, steps, params = {}, {}, [], {}
    for node in nodes:
        given[node.name] = shape = _input_shape(node, shapes)
        if node.kind in CELLS:
            layer = cell_of(node, shape, dt, surrogate)
        else:
            flattened = given[node.sources[0]] if node.sources and node.sources[0] in ours else None
            map_shape = flattened if flattened is not None and len(flattened) == 3 else None
            layer = layer_of(node, shape, map_shape=map_shape, in_order=node.name not in ours)
        shapes[node.name] = layer.shape
        params |= layer.params
        steps.append((node.name, node.sources, layer.call))
    _check_output(nodes[-1], shapes)
    first = shapes[nodes[0].name]
    return NIRNetwork((*first[1:], first[0]), tuple(steps)), jax.tree.map(jnp.asarray, params)


def _input_shape(node, shapes):
    if not node.sources:
        if "shape" not in node.values:
            raise node.wrong("must say what shape the input has")
        return check_shape(node, node.values["shape"])
    of_sources = {source: shapes[source] for source in node.sources}
    if len(set(of_sources.values())) > 1:
        raise node.wrong(f"is given the sum of what has different shapes, {of_sources}")
    return shapes[node.sources[0]]


def _check_output(node, shapes):
    if "shape" in node.values and check_shape(node, node.values["shape"]) != shapes[node.name]:
        raise node.wrong(
            f"says that outputs are {node.values['shape'].tolist()}, and they are {shapes[node.name]}"
        )
