"""Constants under `jax.shard_map`, which checks over which devices each value may vary."""

from typing import Any

import jax


def vary_like(tree: Any, like: Any) -> Any:
    """Marks the arrays of `tree` as varying over all devices over which some array of `like` does.

    A loop under `jax.shard_map` wants this of what it starts from, zeros for instance. Values stay as they
    are, and elsewhere nothing is done.

    Args:
      tree, like: pytrees of arrays.
    """
    axes = frozenset().union(*(varying_over(x) for x in jax.tree.leaves(like)))

    def mark(x):
        missing = axes - varying_over(x)
        return jax.lax.pcast(x, tuple(missing), to="varying") if missing else x

    return jax.tree.map(mark, tree)


def varying_over(x: jax.Array) -> frozenset[str]:
    """Names the mesh axes over which an array varies under `jax.shard_map`; elsewhere none."""
    return jax.typeof(x).manual_axis_type.varying
