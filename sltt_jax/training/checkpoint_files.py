"""One checkpoint on disk, with Orbax: written in the background, verified when it is read."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import metadata
from orbax.checkpoint import v1 as ocp

from sltt_jax.blocks import PyTree

# The parts of a state, each saved by itself: parameters, state of the optimizer, ...
Parts = dict[str, PyTree]


class Damaged(ValueError):
    """Raised where files of a checkpoint are missing, cut off or changed; `reason` tells it in a line."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"checkpoint {path.name} in {path.parent} is damaged: {reason}")
        self.reason = reason


class Unfit(ValueError):
    """Raised for a checkpoint that is whole, but not of the arrays that are asked for."""


def sha256(tree: PyTree) -> str:
    """Checksum of a tree of arrays and numbers: of paths, types, shapes and every bit of the values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        host = _to_host(leaf)
        digest.update(
            f"{jax.tree_util.keystr(path)} {getattr(leaf, 'dtype', host.dtype)} {host.shape};".encode()
        )
        # As bytes without a copy, also of types that NumPy itself does not have.
        digest.update(np.ascontiguousarray(host).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def begin_to_write(
    path: Path, parts: Parts, progress: dict[str, Any], score: float | None
) -> Callable[[], None]:
    """Begins to write a checkpoint to `path`, under another name until all of it is on disk.

    Returns:
      A function that waits for that; it raises an OSError as well.

    Raises:
      FloatingPointError: `parts` hold NaN. Infinity is a value: masks and schedules begin with it.
      OSError: it cannot be written, for the reason that the message gives.
      TypeError: `parts` hold something that is no array and no number.
    """
    host = {}
    for name, part in parts.items():
        places = _places(part)
        for where, leaf in _leaves(part).items():
            array = _to_host(leaf)
            if array.dtype.kind in "OSU":
                raise TypeError(f"{name}{where} must be an array or a number, got {leaf!r}")
            if jnp.issubdtype(array.dtype, jnp.inexact) and np.isnan(array).any():
                raise FloatingPointError(f"{name}{where} holds NaN; checkpoint {path.name} was not saved")
            host.setdefault(name, {})[places[where]] = array
    about = {
        "progress": progress,
        "score": score,
        "arrays": {name: _forms(part) for name, part in parts.items()},
        "sha256": {name: sha256(part) for name, part in parts.items()},
    }
    about: Any = json.loads(json.dumps(about))
    with _raised_as(OSError, OSError):
        response = ocp.save_checkpointables_async(
            str(path), host, custom_metadata={**about, "checksum": _checksum(about)}
        )

    def wait():
        with _raised_as(OSError, OSError, ValueError):  # TensorStore raises the latter for a full disk
            response.result()

    return wait


def read_about(path: Path) -> dict[str, Any]:
    """Reads what was saved beside the arrays: "progress", "score", and types, shapes and sums of the parts.

    Raises:
      Damaged: it is not what was written.
    """
    with _raised_as(lambda reason: Damaged(path, reason), OSError, ValueError):
        about = dict(metadata.get_step_metadata(path).custom_metadata)
    if about.pop("checksum", None) != _checksum(about):
        raise Damaged(path, "the checksum of its metadata is wrong")
    return about


def read(path: Path, like: Parts) -> tuple[Parts, dict[str, Any]]:
    """Reads some parts of a checkpoint and its progress, and verifies every bit of them.

    Args:
      path: of the checkpoint.
      like: the parts that are wanted, with the structure, shapes and types that they must have; arrays, or
        what `jax.eval_shape` returns.

    Raises:
      Damaged: what is on disk is not what was written.
      Unfit: `like` differs from what was written.
    """
    about, parts = read_about(path), dict(like)
    for name, part in like.items():
        found, wanted = about["arrays"].get(name, {}), _forms(part)
        for where in {**wanted, **found}:
            if found.get(where) != wanted.get(where):
                has, needs = found.get(where, "not in it"), wanted.get(where, "no such array")
                message = f"does not fit: {name}{where} is {has}, expected {needs}"
                raise Unfit(f"checkpoint {path.name} in {path.parent} {message}")
    for name, part in like.items():
        if jax.tree.leaves(part):
            places = _places(part)
            blank = {places[where]: _blank(leaf) for where, leaf in _leaves(part).items()}
            # A KeyError of Orbax's own wraps whatever it met when it read the files of a part.
            with _raised_as(lambda reason: Damaged(path, reason), OSError, ValueError, KeyError):
                # One by one: of parts that it has not come to when one fails, Orbax leaves coroutines behind.
                host = ocp.load_checkpointables(str(path), {name: blank})[name]
            of = lambda path, leaf: _wrap(host[places[jax.tree_util.keystr(path)]], leaf)  # noqa: B023
            parts[name] = jax.tree_util.tree_map_with_path(of, part)
            if sha256(parts[name]) != about["sha256"][name]:
                raise Damaged(path, f"the checksum of {name} is wrong")
    return parts, about["progress"]


@contextlib.contextmanager
def _raised_as(error_of: Callable[[str], Exception], *faults: type[Exception]):
    """Raises `error_of(reason)` for what Orbax and TensorStore raise when files are not as they should be."""
    try:
        yield
    except faults as error:
        raise error_of(_reason(error)) from error


def _reason(error):
    """Tells what went wrong in a line: the end of the first cause's message, where TensorStore says it."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = (str(error).strip() or type(error).__name__).splitlines()[0].partition(" [tensorstore_spec")[0]
    return line if len(line) <= 200 else f"...{line[-200:]}"


def _checksum(about):
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _leaves(part):
    """Arrays and numbers of a tree by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(part)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _places(part):
    """Names of the arrays on disk, by their paths; Orbax gets no tree, whose nodes may be a user's own."""
    return {path: str(i) for i, path in enumerate(sorted(_leaves(part)))}


def _forms(part):
    """Type and shape of every array by its path; of a number of Python's its type."""
    return {
        path: f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else type(leaf).__name__
        for path, leaf in _leaves(part).items()
    }


def _is_key(leaf):
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_host(leaf):
    """Numpy array of an array or a number, or of the data of random keys."""
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _blank(like):
    """Array on the host for what `like` is or describes."""
    plain = jax.eval_shape(jax.random.key_data, like) if _is_key(like) else like
    return np.zeros(plain.shape, plain.dtype) if hasattr(plain, "dtype") else np.zeros_like(plain)


def _wrap(host, like):
    if not hasattr(like, "dtype"):
        return type(like)(host.item())
    return jax.random.wrap_key_data(host, impl=jax.random.key_impl(like)) if _is_key(like) else host
