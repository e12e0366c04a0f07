"""Checkpoints of a run, with Orbax: atomic, written in the background, verified when they are read."""

import hashlib
import itertools
import json
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from sltt_jax.blocks import PyTree
from sltt_jax.training.processes import wait_for_all

# The parts of a state, each saved by itself: parameters, state of the optimizer, ...
Parts = dict[str, PyTree]

CHECKPOINTS = "checkpoints"
DAMAGED = "checkpoints_damaged"

# Where Orbax writes `custom_metadata`; its own reader of that opens every array as well.
_METADATA = "_CHECKPOINT_METADATA"

# How Orbax names what it has not finished.
_UNFINISHED = ".orbax-checkpoint-tmp"

# What Orbax and TensorStore raise for files that are missing, cut off or changed, and for a full disk.
_FAULTS = (OSError, ValueError, KeyError, RuntimeError, TypeError)


class _Unfit(Exception):
    """A checkpoint is whole, but not of the arrays that are asked for."""


def to_host(tree: PyTree) -> PyTree:
    """A tree of arrays as numpy arrays, with the data of random keys in their place."""
    return jax.tree.map(lambda a: np.asarray(jax.random.key_data(a) if _is_key(a) else a), tree)


def sha256(tree: PyTree) -> str:
    """A checksum of a tree of arrays: of paths, types, shapes and every bit of the values."""
    digest = hashlib.sha256()
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for (path, leaf), host in zip(leaves, jax.tree.leaves(to_host(tree)), strict=True):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape};".encode())
        digest.update(host.tobytes())
    return digest.hexdigest()


class Checkpoints:
    """The checkpoints in `<workdir>/checkpoints`, to be used in a `with` statement.

    Kept are the last `keep` and the one with the best score, of equal ones the later. With several processes
    all must make the same calls, on one file system.

    Args:
      workdir: an existing directory.
      keep: how many of the last are kept, >= 1; two, so that one is left if the last gets damaged.

    Raises:
      ValueError: `keep` is below 1.
    """

    def __init__(self, workdir: Path, *, keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep must be >= 1, got {keep}")
        self._root, self._damaged = workdir.absolute() / CHECKPOINTS, workdir.absolute() / DAMAGED
        self._keep = keep
        self._pending = None

    def __enter__(self) -> "Checkpoints":
        if jax.process_index() == 0:
            self._root.mkdir(exist_ok=True)
            self._remove_unfinished()
        wait_for_all("checkpoints opened")
        return self

    def __exit__(self, kind, error, traceback):
        # What one process alone may raise is no time to wait for the others; a loss that is not finite is.
        if jax.process_count() == 1 or kind is None or issubclass(kind, FloatingPointError):
            self.wait()

    @property
    def numbers(self) -> list[int]:
        """The numbers of the checkpoints that there are, in order."""
        return _numbers(self._root)

    def save(self, number: int, parts: Parts, progress: dict[str, Any], *, score: float | None = None):
        """Begins to write a checkpoint, once the one before is on disk.

        Args:
          number: larger than those before.
          parts: trees of arrays.
          progress: anything else, as JSON.
          score: the best one's checkpoint is kept.

        Raises:
          OSError: this or the checkpoint before could not be written; those before are intact.
          FloatingPointError: `parts` or `score` hold a number that is not finite.
          ValueError: `number` is not larger than those before.
        """
        self.wait()
        if self.numbers and number <= self.numbers[-1]:
            raise ValueError(f"number must be above {self.numbers[-1]}, that of the last, got {number}")
        if score is not None and not math.isfinite(score):
            raise FloatingPointError(f"score is {score}; checkpoint {number} was not saved")
        host = {name: to_host(part) for name, part in parts.items() if jax.tree.leaves(part)}
        for name, part in host.items():
            for path, leaf in jax.tree_util.tree_leaves_with_path(part):
                if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.isfinite(leaf).all():
                    where = name + jax.tree_util.keystr(path)
                    raise FloatingPointError(f"{where} is not finite; checkpoint {number} was not saved")
        about = {
            "progress": progress,
            "score": score,
            "arrays": {name: _forms(part) for name, part in parts.items()},
            "sha256": {name: sha256(part) for name, part in parts.items()},
        }
        about: Any = json.loads(json.dumps(about))
        try:
            response = ocp.save_checkpointables_async(
                str(self._root / str(number)), host, custom_metadata={**about, "checksum": _checksum(about)}
            )
        except _FAULTS as error:
            raise self._unsaved(number, error) from error
        self._pending = number, response

    def wait(self):
        """Returns when what was saved is on disk, and what is not to be kept is gone.

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
        if jax.process_index() == 0:
            self._remove_old()
        wait_for_all(f"checkpoint {number} written")

    def load(self, like: Parts) -> tuple[Parts, dict[str, Any]] | None:
        """The parts and progress of the last checkpoint that is whole; None if there never was one.

        Damaged ones after it are moved to `<workdir>/checkpoints_damaged`, with a warning.

        Args:
          like: parts of the same structure, shapes and types.

        Raises:
          ValueError: there were checkpoints, but all are damaged; or the last one is of another network.
        """
        self.wait()
        for number in reversed(self.numbers):
            loaded, fault = None, "on another process"
            try:
                loaded = _read(self._root / str(number), like)
            except _Unfit as error:
                raise ValueError(f"checkpoint {number} in {self._root} does not fit: {error}") from error
            except _FAULTS as error:
                fault = _reason(error)
            if loaded is not None and _everywhere(True):
                return loaded
            if jax.process_index() == 0:
                self._put_aside(number, fault)
            wait_for_all(f"damaged checkpoint {number} moved")
        if self._damaged.is_dir():
            raise ValueError(
                f"all checkpoints of {self._root.parent} are damaged; they were moved to {self._damaged}"
            )
        return None

    def _put_aside(self, number, fault):
        self._damaged.mkdir(exist_ok=True)
        names = (str(number) if n == 1 else f"{number}_{n}" for n in itertools.count(1))
        target = next(self._damaged / name for name in names if not (self._damaged / name).exists())
        (self._root / str(number)).rename(target)
        warnings.warn(f"checkpoint {number} is damaged ({fault}); it was moved to {target}", stacklevel=3)

    def _unsaved(self, number, error):
        if jax.process_index() == 0:
            self._remove_unfinished()  # the disk may be full of it
        before = ", ".join(map(str, self.numbers))
        return OSError(
            f"checkpoint {number} could not be written to {self._root}: {_reason(error)}. "
            + (f"The earlier ones are intact: {before}" if before else "There is no earlier one")
        )

    def _remove_unfinished(self):
        for path in self._root.glob(f"*{_UNFINISHED}*"):
            shutil.rmtree(path)

    def _remove_old(self):
        scores = {}
        for number in self.numbers:
            try:
                scores[number] = _about(self._root / str(number))["score"]
            except _FAULTS as error:
                self._put_aside(number, _reason(error))
        for number in scores.keys() - {*list(scores)[-self._keep :], _best(scores)}:
            # Renamed first: a kill must not leave half of it under its number, as if it were damaged.
            doomed = (self._root / str(number)).rename(self._root / f"{number}{_UNFINISHED}")
            shutil.rmtree(doomed)


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
    numbers = _numbers(root)
    number = int(folder.name) if one else max(numbers, default=None)
    if best and not one:
        scores = {}
        for n in numbers:
            try:
                scores[n] = _about(root / str(n))["score"]
            except _FAULTS as error:
                raise ValueError(f"checkpoint {n} in {root} is damaged: {_reason(error)}") from error
        number = _best(scores)
    if number not in numbers:
        which = "checkpoint with a score" if best else "such checkpoint"
        raise FileNotFoundError(f"{folder}: there is no {which} among {numbers}")
    try:
        return _read(root / str(number), like)[0]
    except _Unfit as error:
        raise ValueError(f"checkpoint {number} in {root} does not fit: {error}") from error
    except _FAULTS as error:
        raise ValueError(f"checkpoint {number} in {root} is damaged: {_reason(error)}") from error


def _numbers(root):
    return sorted(int(path.name) for path in root.iterdir() if path.name.isdecimal())


def _best(scores):
    """The number with the best score, of equal ones the later; None if none has one."""
    return max((n for n in scores if scores[n] is not None), key=lambda n: (scores[n], n), default=None)


def _read(path, like):
    """The parts and the progress of a checkpoint; `_Unfit`, or one of `_FAULTS` if it is damaged."""
    about, parts = _about(path), dict(like)
    for name, part in like.items():
        found, wanted = about["arrays"].get(name, {}), _forms(part)
        for where in {**wanted, **found}:
            if found.get(where) != wanted.get(where):
                has, needs = found.get(where, "not in it"), wanted.get(where, "no such array")
                raise _Unfit(f"{name}{where} is {has}, expected {needs}")
    for name, part in like.items():
        if jax.tree.leaves(part):
            # One by one: of parts that it has not come to when one fails, Orbax leaves coroutines behind.
            host = ocp.load_checkpointables(path, {name: jax.tree.map(_blank, part)})[name]
            parts[name] = jax.tree.map(_wrap, host, part)
            if sha256(parts[name]) != about["sha256"][name]:
                raise ValueError(f"the checksum of {name} is wrong")
    return parts, about["progress"]


def _about(path):
    """What was saved beside the arrays; one of `_FAULTS` if it is damaged."""
    about = json.loads((path / _METADATA).read_text())["custom_metadata"]
    if about.pop("checksum") != _checksum(about):
        raise ValueError(f"the checksum of {_METADATA} is wrong")
    return about


def _checksum(about):
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _forms(part):
    """Type and shape of every array, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(part)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _is_key(array):
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def _blank(like):
    """An array on the host for what `like` is or describes."""
    plain = jax.eval_shape(jax.random.key_data, like) if _is_key(like) else like
    return np.zeros(plain.shape, plain.dtype)


def _wrap(host, like):
    return jax.random.wrap_key_data(host, impl=jax.random.key_impl(like)) if _is_key(like) else host


def _everywhere(mine: bool) -> bool:
    """Whether it is so on all processes."""
    return mine if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(mine)).all())


def _reason(error):
    """What went wrong, in a line: the end of the first cause's message, where TensorStore tells it."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = (str(error).strip() or type(error).__name__).splitlines()[0].partition(" [tensorstore_spec")[0]
    return line if len(line) <= 200 else f"...{line[-200:]}"
