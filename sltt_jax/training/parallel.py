"""Data parallelism: every device takes a part of each batch, and gradients are averaged once an update.

The state has no device axis: it goes into `pmap` and comes out of it as one array, the same on all devices.
That is the right form for SLTT. Gradients are summed over the time steps where they are computed, and one
all-reduce follows after the last step; under `jit` with sharded arrays the compiler puts one into every step.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

PyTree = Any
Devices = Sequence[Any]  # of jax.Device, which type checkers do not take for a type

AXIS = "devices"


def local_devices(count: int | None = None) -> Devices:
    """The first `count` devices of this process; all by default.

    Raises:
      ValueError: there are fewer.
    """
    devices = jax.local_devices()
    if count is not None and not 1 <= count <= len(devices):
        raise ValueError(f"devices must be in 1..{len(devices)}, those of this process, got {count}")
    return devices[:count]


def check_divides(batch_size: int, parts: int):
    """Raises a ValueError that names the nearest batch sizes unless `parts` divides `batch_size`."""
    if batch_size % parts:
        below = batch_size // parts * parts
        nearest = f"{below} or {below + parts}" if below else f"{parts}"
        raise ValueError(
            f"batch_size {batch_size} cannot be shared by {parts} devices; the nearest that can: {nearest}"
        )


def split(batch: PyTree, devices: Devices) -> PyTree:
    """A batch `[B, ...]` on the devices, `[devices, B / devices, ...]`, a part on each."""
    mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
    parts = jax.tree.map(lambda a: a.reshape(len(devices), -1, *a.shape[1:]), batch)
    return jax.device_put(parts, sharding)


def replicate(tree: PyTree, devices: Devices) -> PyTree:
    """A tree of arrays, whole on each of the devices."""
    mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def parallel(f: Callable, devices: Devices, *, arguments: int, donate: bool = False) -> Any:
    """`f(*arguments, batch)`, built with `axis_name=AXIS`, over devices: batches as `split` makes them.

    Args:
      f: returns what is the same on all devices.
      devices: of this process; with several processes each names its own.
      arguments: how many arguments before the batch all devices share.
      donate: give the memory of the first of them to the results.
    """
    return jax.pmap(
        f,
        AXIS,
        in_axes=(None,) * arguments + (0,),
        out_axes=None,  # pyright: ignore[reportArgumentType]
        devices=devices,
        donate_argnums=0 if donate else (),
    )


def check_replicated(tree: PyTree):
    """Raises a RuntimeError unless all devices, of all processes, hold the same values.

    `pmap` takes what comes out of its first device for the whole, and does not look at the others. Every
    process must call this at the same point.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        first, *others = (np.asarray(shard.data) for shard in leaf.addressable_shards)
        for device, other in zip(leaf.addressable_shards[1:], others, strict=True):
            if not np.array_equal(first, other, equal_nan=True):
                name = jax.tree_util.keystr(path)
                raise RuntimeError(
                    f"{name} on {device.device} differs from {leaf.addressable_shards[0].device}"
                )
    if jax.process_count() > 1:
        values = jax.tree.map(lambda leaf: np.asarray(leaf.addressable_shards[0].data), tree)
        multihost_utils.assert_equal(values, "the processes hold different parameters")
