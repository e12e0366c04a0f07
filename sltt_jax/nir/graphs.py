"""Checks of NIR graphs from elsewhere: out comes a list of nodes, or an error that names one."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

CELLS = "LIF", "IF", "LI", "CubaLIF"
DENSE = "Linear", "Affine"
_ENDS = "Input", "Output"
FIELDS: dict[str, tuple[str, ...]] = {
    "Input": (),
    "Output": (),
    "Linear": ("weight",),
    "Affine": ("weight", "bias"),
    "Conv2d": ("weight", "bias", "stride", "padding", "dilation", "groups"),
    "AvgPool2d": ("kernel_size", "stride", "padding"),
    "SumPool2d": ("kernel_size", "stride", "padding"),
    "Flatten": ("start_dim", "end_dim"),
    "LIF": ("tau", "r", "v_leak", "v_threshold", "v_reset"),
    "IF": ("r", "v_threshold", "v_reset"),
    "LI": ("tau", "r", "v_leak"),
    "CubaLIF": ("tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "v_reset", "w_in"),
}
_DEFAULTS = {"v_reset": np.zeros(()), "w_in": np.ones(())}

# More than networks have, and less than takes minutes or fills a machine.
_MOST_NODES, _MOST_EDGES, _DEEPEST = 2_000, 20_000, 8
MOST_VALUES = 2**28


class Node(NamedTuple):
    """One node of a graph without graphs in it.

    Attributes:
      name: its name, "graph.node" for one of a graph within the graph.
      kind: its type in NIR, one of `FIELDS`.
      values: its fields, finite numbers, or "same" and "valid" for a padding.
      sources: nodes whose outputs it is given the sum of.
      lateral: of a cell, the `Linear` or `Affine` from it to itself, by which it sees its spikes of the step
        before.
    """

    name: str
    kind: str
    values: dict[str, Any]
    sources: tuple[str, ...]
    lateral: "Node | None" = None

    def wrong(self, message: str) -> ValueError:
        """Makes an error that names the node."""
        return ValueError(f"node {self.name!r} ({self.kind}) {message}")


class Raw(NamedTuple):
    """Graph as it was found: nodes by name, with `type` and fields or graphs themselves, and edges."""

    nodes: Mapping[str, "Mapping[str, Any] | Raw"]
    edges: Sequence[Sequence[str]]


def raw_graph(graph: Any, depth: int = 0) -> Raw:
    """Takes a `nir.NIRGraph` apart.

    Raises:
      TypeError: it is something else.
      ValueError: there are too many graphs within one another, or a node has not the fields of its type.
    """
    if type(graph).__name__ != "NIRGraph":
        raise TypeError(f"expected a nir.NIRGraph or the path of a .nir file, got {type(graph).__name__}")
    if depth > _DEEPEST:
        raise ValueError(f"graphs lie more than {_DEEPEST} deep within one another")
    nodes = {}
    for name, node in graph.nodes.items():
        kind = type(node).__name__
        if kind == "NIRGraph":
            nodes[name] = raw_graph(node, depth + 1)
            continue
        fields = {field: getattr(node, field) for field in FIELDS.get(kind, ()) if hasattr(node, field)}
        if kind in _ENDS:
            fields["shape"] = next(iter((node.input_type or {}).values()), None)
        nodes[name] = {"type": kind, **fields}
    return Raw(nodes, graph.edges)


def checked(graph: Raw) -> list[Node]:
    """Lists the nodes of a graph, each after those that it is given something by; the first is the input.

    Raises:
      ValueError: a node is of an unknown type, lacks a field or has one that is not numbers or too large; an
        edge leads from or to nothing; there are several inputs or outputs; nodes go round in a circle that is
        no recurrent cell. The message names the node.
    """
    nodes, edges = _flat(graph, "")
    if len(nodes) > _MOST_NODES or len(edges) > _MOST_EDGES:
        raise ValueError(
            f"the graph has {len(nodes)} nodes and {len(edges)} edges, more than {_MOST_NODES} and "
            f"{_MOST_EDGES}"
        )
    twice = [edge for edge, n in Counter(edges).items() if n > 1]
    if twice:
        raise ValueError(f"the edge {twice[0]!r} is there twice")
    for kind in _ENDS:
        found = [name for name, node in nodes.items() if node["type"] == kind and "inner" not in node]
        if len(found) != 1:
            raise ValueError(f"the graph must have one {kind} node, got {found or 'none'}")
    sources, targets = {name: [] for name in nodes}, {name: [] for name in nodes}
    for a, b in edges:
        sources[b].append(a)
        targets[a].append(b)
    lateral = {}
    for name, node in nodes.items():
        cell = sources[name][0] if sources[name] == targets[name] and len(sources[name]) == 1 else None
        if node["type"] in DENSE and cell is not None and nodes[cell]["type"] in CELLS:
            if cell in lateral:
                raise ValueError(
                    f"node {cell!r} has two nodes back to itself, {lateral[cell]!r} and {name!r}"
                )
            lateral[cell] = name
    ordered = []
    for name in _in_order(nodes, sources, targets, lateral):
        way = [source for source in sources[name] if source != lateral.get(name)]
        back = lateral.get(name)
        back = back and _node(back, nodes[back], (name,), None)
        ordered.append(_node(name, nodes[name], tuple(way), back))
    return ordered


def _flat(graph: Raw, prefix: str, depth: int = 0) -> tuple[dict[str, dict[str, Any]], list[tuple[str, str]]]:
    """Puts graphs within the graph in its place; their inputs and outputs stay as nodes that do nothing."""
    nodes, edges, enters, leaves = {}, [], {}, {}
    for name, node in graph.nodes.items():
        if not isinstance(name, str) or not name or "/" in name:
            raise ValueError(f"a node must have a name without slashes, got {name!r}")
        whole = prefix + name
        if not isinstance(node, Raw):
            kind = str(node.get("type"))
            if kind not in FIELDS:
                raise ValueError(
                    f"node {whole!r} is of the unknown type {kind!r}; known: {', '.join(FIELDS)}"
                )
            nodes[whole] = {**node, "type": kind, **({"inner": True} if depth else {})}
            enters[name] = leaves[name] = whole
            continue
        inner, between = _flat(node, f"{whole}.", depth + 1)
        for kind, ends in zip(_ENDS, (enters, leaves), strict=True):
            found = [
                f"{whole}.{n}" for n, x in node.nodes.items() if not isinstance(x, Raw) and x["type"] == kind
            ]
            if len(found) != 1:
                raise ValueError(f"the graph {whole!r} must have one {kind} node, got {found or 'none'}")
            ends[name] = found[0]
        if clash := nodes.keys() & inner.keys():
            raise ValueError(f"two nodes are named {min(clash)!r}")
        nodes |= inner
        edges += between
    for edge in graph.edges:
        if len(edge) != 2:
            raise ValueError(f"an edge must be from one node to another, got {edge!r}")
        for end in edge:
            if end not in enters:
                raise ValueError(
                    f"the edge {tuple(edge)!r} names {end!r}, which is no node of {prefix or 'the graph'}"
                )
        edges.append((leaves[edge[0]], enters[edge[1]]))
    return nodes, edges


def _in_order(nodes, sources, targets, lateral) -> Iterable[str]:
    """Names of the nodes but for lateral weights, each after its sources."""
    back = set(lateral.values())
    left = {name: set(sources[name]) - back for name in nodes if name not in back}
    for name in left:
        kind, outer = nodes[name]["type"], "inner" not in nodes[name]
        if not left[name] and not (kind == "Input" and outer):
            raise ValueError(f"node {name!r} ({kind}) is given nothing: no edge leads to it from elsewhere")
        if left[name] and kind == "Input" and outer:
            raise ValueError(f"node {name!r} ({kind}) is given the output of {sorted(left[name])[0]!r}")
        if not set(targets[name]) - back and not (kind == "Output" and outer):
            raise ValueError(f"node {name!r} ({kind}) leads nowhere: no edge leads on from it")
        if targets[name] and kind == "Output" and outer:
            raise ValueError(f"node {name!r} ({kind}) leads on to {targets[name][0]!r}")
    order = []
    while left:
        ready = [name for name in left if not left[name] - set(order)]
        if not ready:
            names = ", ".join(repr(name) for name in sorted(left))
            raise ValueError(
                f"nodes go round in a circle, among {names}: the only circle that is known is one of a cell "
                f"({', '.join(CELLS)}) and a {' or '.join(DENSE)} from it to itself"
            )
        order += ready
        for name in ready:
            del left[name]
    return order


def _node(name, given, sources, lateral) -> Node:
    node = Node(name, given["type"], {}, sources, lateral)
    for field in FIELDS[node.kind]:
        if field not in given and field not in _DEFAULTS:
            raise node.wrong(f"has no {field}")
        node.values[field] = _numbers(node, field, given.get(field, _DEFAULTS.get(field)))
    if node.kind in _ENDS and given.get("shape") is not None:
        node.values["shape"] = _numbers(node, "shape", given["shape"])
    return node


def _numbers(node, field, value):
    if field == "padding" and isinstance(value, str | np.str_):
        if value not in ("same", "valid"):
            raise node.wrong(f"must have 'same', 'valid' or numbers as its padding, got {value!r}")
        return str(value)
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise node.wrong(f"must have numbers as its {field}, got {array.dtype}")
    if not 0 < array.size <= MOST_VALUES:
        raise node.wrong(f"must have 1 to {MOST_VALUES:,} numbers as its {field}, got {array.size:,}")
    if not np.isfinite(array).all():
        raise node.wrong(f"must have finite numbers as its {field}, got {array[~np.isfinite(array)][0]}")
    return array
