"""Data parallelism: every device takes a part of each batch, and gradients are averaged once an update.

The state has no device axis: it goes into `pmap` and comes out of it as one array, the same on all devices.
That is the right form for SLTT. Gradients are summed over the time steps where they are computed, and one
all-reduce follows after the last step; under `jit` with sharded arrays the compiler puts one into every step.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from sltt_jax.blocks import PyTree

Devices = Sequence[Any]  # of jax.Device, which type checkers do not take for a type

AXIS = "devices"


def local_devices(count: int | None = None) -> Devices:
    """Returns the first `count` devices of this process; all by default.

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
    """Puts a batch `[B, ...]` on the devices, `[devices, B / devices, ...]`, a part on each.

    Raises:
      ValueError: the arrays differ in their B, or the devices cannot share it.
    """
    sizes = {a.shape[:1] for a in jax.tree.leaves(batch)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(f"all arrays of a batch must be [B, ...] of one B, got {sorted(sizes)}")
    ((B,),) = sizes
    check_divides(B, len(devices))
    mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(AXIS))
    parts = jax.tree.map(lambda a: a.reshape(len(devices), B // len(devices), *a.shape[1:]), batch)
    return jax.device_put(parts, sharding)


def samples_of(batch: PyTree) -> int:
    """Counts the samples of a batch `[B, ...]`, also of what `split` has made of it."""
    x = jax.tree.leaves(batch)[0]
    sharding = getattr(x, "sharding", None)
    by_device = isinstance(sharding, jax.sharding.NamedSharding) and sharding.mesh.axis_names == (AXIS,)
    return math.prod(x.shape[: 1 + by_device])


def replicate(tree: PyTree, devices: Devices) -> PyTree:
    """Puts a tree of arrays, whole, on each of the devices; on the first it may share memory with `tree`."""
    mesh = jax.sharding.Mesh(np.asarray(devices), (AXIS,))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def parallel(f: Callable, devices: Devices, *, arguments: int, donate: bool = False) -> Any:
    """Compiles `f(*arguments, batch)`, built with `axis_name=AXIS`, for devices and batches as of `split`.

    Args:
      f: returns what is the same on all devices.
      devices: of this process; with several processes those at the same places of all of them.
      arguments: how many arguments before the batch all devices share.
      donate: give the memory of the first of them to the results.
    """
    return jax.pmap(
        f,
        AXIS,
        in_axes=(None,) * arguments + (0,),
        out_axes=None,  # pyright: ignore[reportArgumentType]
        devices=_of_all_processes(devices),
        donate_argnums=0 if donate else (),
    )


def _of_all_processes(devices: Devices) -> Devices:
    if jax.process_count() == 1:  # these may be devices that are only compiled for
        return devices
    places = [jax.local_devices().index(device) for device in devices]
    processes = range(jax.process_count())
    return [jax.local_devices(process_index=p)[place] for p in processes for place in places]


def check_replicated(tree: PyTree):
    """Raises a RuntimeError unless all devices, of all processes, hold the same values.

    `pmap` takes what comes out of its first device for the whole, and does not look at the others. Every
    process must call this at the same point.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    digests = []
    for path, leaf in leaves:
        found = [_digest(shard.data) for shard in leaf.addressable_shards]
        for shard, digest in zip(leaf.addressable_shards, found, strict=True):
            if digest != found[0]:
                name, first = jax.tree_util.keystr(path), leaf.addressable_shards[0].device
                raise RuntimeError(f"{name} on {shard.device} differs from {first}")
        digests.append(np.frombuffer(found[0], np.uint8))
    if jax.process_count() > 1:
        everywhere = multihost_utils.process_allgather(np.stack(digests))  # [processes, leaves, bytes]
        for (path, _), of_leaf in zip(leaves, np.moveaxis(everywhere, 1, 0), strict=True):
            if (of_leaf != of_leaf[0]).any():
                raise RuntimeError(f"{jax.tree_util.keystr(path)} differs from process to process")


def _digest(array):
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return hashlib.sha256(np.asarray(array).tobytes()).digest()
