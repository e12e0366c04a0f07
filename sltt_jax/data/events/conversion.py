"""Files of a data set become frames: found by class, converted with a progress bar, kept in a cache."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from sltt_jax.data.arrays import ArrayData
from sltt_jax.data.cache import cached
from sltt_jax.data.events.binning import Events


class RecordingFile(NamedTuple):
    """File of a recording, its class (-1: a file beside it tells), and the files beside it that are read."""

    path: Path
    label: int
    beside: tuple[Path, ...] = ()


def class_files(folder: Path, names: Sequence[str], pattern: str) -> list[RecordingFile]:
    """Finds all files `<folder>/<name>/<pattern>`, in the order of `names`, which also gives the labels.

    Raises:
      FileNotFoundError: a folder is missing, or has no such files.
      ValueError: another folder has such files.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; it should hold {names[0]}, ..., {names[-1]}")
    for other in sorted(folder.iterdir()):
        if other.is_dir() and other.name not in names and any(other.glob(pattern)):
            raise ValueError(f"{other}: not one of the classes {', '.join(names)}")
    sources = []
    for label, name in enumerate(names):
        paths = sorted((folder / name).glob(pattern))
        if not paths:
            raise FileNotFoundError(f"{folder / name}: no {pattern} files")
        sources += [RecordingFile(path, label) for path in paths]
    return sources


def load_frames(
    name: str,
    folder: Path,
    splits: tuple[list[RecordingFile], list[RecordingFile]],
    *,
    read: Callable[[RecordingFile], Iterable[tuple[Events, int]]],
    frame: Callable[[Events], np.ndarray],
    options: dict[str, Any],
    classes: int,
    cache: str | Path | None,
) -> ArrayData:
    """Converts the training and test files of a data set, or takes what is in the cache.

    Args:
      name: of the data set.
      folder: where the data set lies.
      splits: the files for training and for testing.
      read: the recordings and classes in a file.
      frame: makes a recording an array of unsigned integers, always of the same shape.
      options: all that `read` and `frame` depend on.
      classes: the number of classes.
      cache: the folder of the cache; None: there is none.
    """

    def build() -> dict[str, np.ndarray]:
        train, test = splits
        return as_arrays(
            _convert(f"{name} train", train, read, frame), _convert(f"{name} test", test, read, frame)
        )

    paths = [path for split in splits for source in split for path in (source.path, *source.beside)]
    return cached(cache, name, options, folder, paths, build, classes)


def as_arrays(
    train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]
) -> dict[str, np.ndarray]:
    """Names inputs and labels of both splits as `ArrayData` does, with the inputs in one type."""
    dtype = np.result_type(train[0], test[0])
    x = {"train_x": train[0].astype(dtype, copy=False), "test_x": test[0].astype(dtype, copy=False)}
    return {**x, "train_y": train[1], "test_y": test[1]}


def _convert(name: str, sources: list[RecordingFile], read, frame) -> tuple[np.ndarray, np.ndarray]:
    """Arrays of all recordings in the files, `[N, ...]`, and their classes, `[N]`."""
    xs, ys, reordered = [], [], []
    for source in tqdm(sources, desc=name, unit="file", disable=None):
        for events, label in read(source):
            try:
                xs.append(frame(events))
            except ValueError as error:
                raise ValueError(f"{source.path}: {error}") from error
            ys.append(label)
            if events.reordered:
                reordered.append(source.path)
    if reordered:
        message = (
            f"{name}: time runs back in {len(reordered)} of {len(xs)} recordings, first in {reordered[0]}"
        )
        warnings.warn(f"{message}; their events were sorted", stacklevel=2)
    return np.stack(xs), np.array(ys, np.int32)
