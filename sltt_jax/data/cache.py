"""Data sets that took long to make, kept on disk."""

import hashlib
import json
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from sltt_jax.damage import check_is_file
from sltt_jax.data.arrays import ArrayData

# Part of every key: raise it when what is computed from the same files and options changes.
VERSION = 1

DAY = 24 * 60 * 60


def cached(
    folder: str | Path | None,
    name: str,
    options: dict[str, Any],
    root: str | Path,
    sources: Iterable[Path],
    build: Callable[[], dict[str, np.ndarray]],
    classes: int,
) -> ArrayData:
    """Returns the data set of `build()`, from `folder` if the same options and sources made it before.

    The cache is one `.npz` file. It gets its name only when all its bytes are on the disk, so a killed run
    leaves none that is half written; one that is damaged (the format holds checksums) or holds anything but
    such a data set is reported and made again. Processes that miss it at the same time all build it, each
    into a file of its own, and a whole one stays. Where the cache cannot be written, a warning names it, and
    the data are made anew the next time.

    Args:
      folder: where the caches are kept; it is made. None: nothing is kept.
      name: of the file, before its key.
      options: all that the arrays depend on besides the sources; plain values.
      root: the folder that the names of the sources are relative to, so that a moved folder stays valid.
      sources: the files the arrays are made of; their names, sizes and times of change are part of the key,
        also their inodes and the time that no archive can set: other files are not taken for them.
      build: makes the arrays of `ArrayData`.
      classes: the number of classes.

    Raises:
      ValueError: what was built is no data set, see `ArrayData`; it is not kept.
    """
    if folder is None:
        return ArrayData(**build(), classes=classes)
    remove_rests(Path(folder).glob("*.npz.*.tmp"))
    path = Path(folder) / f"{name}-{_key(name, options, Path(root), sources)}.npz"
    if path.exists():
        try:
            check_is_file(path)
            with open(path, "rb") as file, np.load(file) as arrays:
                return ArrayData(**arrays, classes=classes)
        except Exception as error:  # damaged bytes can raise anything
            warnings.warn(f"{path}: damaged cache, it is made again: {error}", stacklevel=2)
    arrays = build()
    data = ArrayData(**arrays, classes=classes)
    try:
        _write(path, arrays)
    except OSError as error:
        size = sum(a.nbytes for a in arrays.values())
        message = f"{path}: {size:,} bytes of cache cannot be kept, and are made anew each time: "
        warnings.warn(message + (error.strerror or str(error)), stacklevel=2)
    return data


def remove_rests(paths: Iterable[Path]) -> None:
    """Deletes what killed runs left half written: those files and folders that nobody wrote to for a day.

    Younger ones may be of a process that is at work now, here or on another machine, and stay.
    """
    for path in paths:
        try:
            newest = max(p.stat().st_mtime for p in (path, *path.rglob("*")))
            if time.time() - newest > DAY:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:  # renamed or deleted meanwhile, or another user's: it costs disk space only
            continue


def _key(name: str, options: dict[str, Any], root: Path, sources: Iterable[Path]) -> str:
    stats = ((p.relative_to(root).as_posix(), p.stat()) for p in sources)
    files = [(name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for name, s in stats]
    text = json.dumps([VERSION, name, options, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write(path: Path, arrays: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if temporary.exists():
            temporary.unlink()
