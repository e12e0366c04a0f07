"""Checkpoints of a run, with Orbax: atomic, written in the background, verified when they are read."""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

PyTree = Any

# The parts of a state, each saved by itself: parameters, state of the optimizer, ...
Parts = dict[str, PyTree]

CHECKPOINTS = "checkpoints"
DAMAGED = "checkpoints_damaged"

# What Orbax and TensorStore raise for files that are missing, cut off or changed, and for a full disk.
_FAULTS = (OSError, ValueError, KeyError, RuntimeError, TypeError)


def to_host(tree: PyTree) -> PyTree:
    """A tree of arrays as numpy arrays, with the data of random keys in their place."""
    return jax.tree.map(np.asarray, _plain(tree))


def _plain(tree):
    is_key = lambda a: jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda a: jax.random.key_data(a) if is_key(a) else a, tree)


def from_host(host: PyTree, like: PyTree) -> PyTree:
    """The inverse of `to_host`: `like` tells the structure, and where random keys are.

    Raises:
      ValueError: shapes or types differ.
    """

    def put(path, a, b):
        if jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(a, impl=jax.random.key_impl(b))
        if a.shape != b.shape or a.dtype != b.dtype:
            found, wanted = f"{a.dtype}{list(a.shape)}", f"{b.dtype}{list(b.shape)}"
            raise ValueError(f"{jax.tree_util.keystr(path)} is {found}, expected {wanted}")
        return a

    return jax.tree_util.tree_map_with_path(put, host, like)


def sha256(tree: PyTree) -> str:
    """A checksum of a tree of arrays: of paths, types, shapes and every bit of the values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(to_host(tree)):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape};".encode())
        digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


class Checkpoints:
    """The checkpoints in `<workdir>/checkpoints`, to be used in a `with` statement.

    Kept are the last `keep` and the one with the best score. With several processes all must make the same
    calls, on one file system.

    Args:
      workdir: an existing directory.
      keep: how many of the last are kept, >= 1; two, so that one is left if the last gets damaged.

    Raises:
      ValueError: `keep` is below 1.
    """

    def __init__(self, workdir: Path, *, keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep must be >= 1, got {keep}")
        self._workdir, self._keep = workdir.absolute(), keep
        self._pending = None

    def __enter__(self) -> "Checkpoints":
        policies = ocp.training.preservation_policies
        best = policies.BestN(
            get_metric_fn=lambda metrics: metrics["score"], n=1, keep_checkpoints_without_metrics=False
        )
        kept = policies.AnyPreservationPolicy([policies.LatestN(self._keep), best])
        self._orbax = ocp.training.Checkpointer(
            str(self._workdir / CHECKPOINTS),
            preservation_policy=kept,  # pyright: ignore[reportArgumentType] (orbax differs with itself)
            cleanup_tmp_directories=True,
        )
        return self

    def __exit__(self, *raised):
        self._orbax.close()

    @property
    def numbers(self) -> list[int]:
        """The numbers of the checkpoints that there are, in order."""
        return [c.step for c in self._orbax.checkpoints]

    def save(self, number: int, parts: Parts, progress: dict[str, Any], *, score: float | None = None):
        """Begins to write a checkpoint, once the one before is on disk.

        Args:
          number: larger than those before.
          parts: trees of arrays.
          progress: anything else, as JSON.
          score: the best one's checkpoint is kept.

        Raises:
          OSError: this or the checkpoint before could not be written; those before are intact.
          FloatingPointError: `parts` hold a number that is not finite.
        """
        self.wait()
        host = {name: to_host(part) for name, part in parts.items() if jax.tree.leaves(part)}
        for path, leaf in jax.tree_util.tree_leaves_with_path(host):
            if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
                raise FloatingPointError(f"{jax.tree_util.keystr(path)} is not finite; it was not saved")
        told: Any = {"progress": progress, "sha256": {name: sha256(part) for name, part in host.items()}}
        try:
            response = self._orbax.save_checkpointables_async(
                number,
                host,
                metrics=None if score is None else {"score": score},
                custom_metadata=told,
            )
            assert response is not None  # no policy leaves a save out
            self._pending = number, response
        except _FAULTS as error:
            raise self._unsaved(number, error) from error

    def wait(self):
        """Returns when what was saved is on disk.

        Raises:
          OSError: it could not be written; the checkpoints before are intact.
        """
        if self._pending is None:
            return
        (number, response), self._pending = self._pending, None
        try:
            response.result()
        except _FAULTS as error:
            raise self._unsaved(number, error) from error

    def _unsaved(self, number, error):
        return OSError(
            f"checkpoint {number} could not be written to {self._workdir / CHECKPOINTS}: {error}. "
            f"Earlier ones are intact."
        )

    def load(self, like: Parts) -> tuple[Parts, dict[str, Any]] | None:
        """The parts and progress of the last checkpoint that is whole; None if there is none at all.

        Damaged ones after it are moved to `<workdir>/checkpoints_damaged`, with a warning.

        Args:
          like: parts of the same structure, shapes and types.

        Raises:
          ValueError: there are checkpoints, but all are damaged.
        """
        damaged = []
        while numbers := self.numbers:
            try:
                return _read(self._orbax, numbers[-1], like)
            except _FAULTS as error:
                damaged.append(f"{numbers[-1]} ({_first_line(error)})")
                self._put_aside(numbers[-1])
                warnings.warn(f"checkpoint {damaged[-1]} is damaged; moved to {DAMAGED}", stacklevel=2)
        if damaged:
            raise ValueError(f"all checkpoints in {self._workdir} are damaged: {', '.join(damaged)}")
        return None

    def _put_aside(self, number):
        self._orbax.close()
        if jax.process_index() == 0:
            target = self._workdir / DAMAGED / str(number)
            target.parent.mkdir(exist_ok=True)
            (self._workdir / CHECKPOINTS / str(number)).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("damaged checkpoint moved")
        self.__enter__()


def load_parts(folder: Path, like: Parts, *, best: bool = False) -> Parts:
    """Some parts of a checkpoint, for a run of its own.

    Args:
      folder: the workdir of a run, of which the last checkpoint is read, or one of its checkpoints,
        `<workdir>/checkpoints/<number>`.
      like: the parts that are wanted, with the structure, shapes and types that they must have; arrays, or
        what `jax.eval_shape` returns.
      best: of a workdir, read the checkpoint with the best score in place of the last.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: it is damaged, or of another network.
    """
    folder = folder.absolute()
    one = folder.parent.name == CHECKPOINTS and folder.name.isdecimal()
    root = folder.parent if one else folder / CHECKPOINTS
    if not root.is_dir():
        raise FileNotFoundError(f"{folder} holds no checkpoints")
    with ocp.training.Checkpointer(str(root)) as orbax:
        found = {
            c.step: c.metrics["score"] if best else c.step for c in orbax.checkpoints if c.metrics or not best
        }
        number = int(folder.name) if one else max(found, key=lambda n: (found[n], n), default=None)
        if number not in found:
            raise FileNotFoundError(f"{folder}: no such checkpoint; there are {sorted(found)}")
        try:
            return _read(orbax, number, like)[0]
        except _FAULTS as error:
            raise ValueError(f"checkpoint {number} in {root} does not fit or is damaged: {error}") from error


def _read(orbax, number, like):
    """The parts and the progress of a checkpoint; one of `_FAULTS` if anything is wrong with them."""
    told: Any = orbax.checkpointables_metadata(number).custom_metadata
    filled = {name: part for name, part in like.items() if jax.tree.leaves(part)}
    filled = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), jax.eval_shape(_plain, filled))
    if unknown := filled.keys() - told["sha256"].keys():
        raise ValueError(f"it has no {', '.join(sorted(unknown))}")
    parts = orbax.load_checkpointables(number, filled)
    for name, part in parts.items():
        if sha256(part) != told["sha256"][name]:
            raise ValueError(f"the checksum of {name} is wrong")
    return {**like, **{name: from_host(part, like[name]) for name, part in parts.items()}}, told["progress"]


def _first_line(error):
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
