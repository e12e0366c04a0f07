"""Reads `.nir` files, which are HDF5, from anywhere."""

import os

import numpy as np

from sltt_jax.damage import check_is_file, reading
from sltt_jax.data.events.foreign import decode
from sltt_jax.nir.graphs import Raw


def read_graph(path: str | os.PathLike) -> Raw:
    """Reads the graph of a file, its HDF5 in a process of its own.

    Raises:
      ValueError: the file is no NIR file, or damaged; the message names it.
      OSError: there is no such file.
      ModuleNotFoundError: the package nir is not installed.
    """
    with reading(path, "an NIR file"):
        check_is_file(path)
        arrays = decode("nir", os.fspath(path))
        tree = {}
        for where, array in arrays.items():
            *groups, field = where.split("/")
            at = tree
            for group in groups:
                at = at.setdefault(group, {})
            at[field] = str(array) if array.dtype.kind == "U" and array.ndim == 0 else array
        if "node" not in tree:
            raise ValueError("it has no group 'node'")
        return _graph(tree["node"], "the graph")


def _graph(group: dict, where: str) -> Raw:
    nodes, edges = group.get("nodes", {}), group.get("edges", np.zeros((0, 2), "U1"))
    if (
        not isinstance(nodes, dict)
        or not isinstance(edges, np.ndarray)
        or edges.ndim != 2
        or edges.shape[1] != 2
    ):
        raise ValueError(f"{where} must have a group of nodes, and edges [n, 2] of names")
    found = {}
    for name, node in nodes.items():
        if not isinstance(node, dict):
            raise ValueError(f"node {name!r} must be a group with a type, got an array")
        if node.get("type") == "NIRGraph":
            found[name] = _graph(node, f"the graph {name!r}")
            continue
        fields = {field: value for field, value in node.items() if not isinstance(value, dict)}
        if "input_type" in fields and "shape" not in fields:
            fields["shape"] = fields["input_type"]
        found[name] = fields
    return Raw(found, [(str(a), str(b)) for a, b in edges])
