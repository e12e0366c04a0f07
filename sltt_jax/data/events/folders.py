"""Recordings in class folders, in every format that is read, as frames."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sltt_jax.data.arrays import ArrayData, check_memory
from sltt_jax.data.class_folders import ClassFiles, find_class_files
from sltt_jax.data.events.binning import Events, SplitBy, frames
from sltt_jax.data.events.conversion import RecordingFile, load_frames
from sltt_jax.data.events.files import read_aedat, read_gesture_npy, read_nmnist
from sltt_jax.data.events.spoken_digits import read_sound


class Format(NamedTuple):
    """Files of a suffix: what reads one, and height and width of its sensor, of one row for sound."""

    read: Callable[[Path], Events]
    sensor: tuple[int, int]


FORMATS = {
    ".bin": Format(read_nmnist, (34, 34)),
    ".aedat": Format(read_aedat, (128, 128)),
    ".aedat4": Format(read_aedat, (128, 128)),
    ".npy": Format(read_gesture_npy, (128, 128)),
    ".wav": Format(read_sound, (1, 32)),
}


def load_event_folder(
    folder: str | Path,
    *,
    steps: int = 10,
    split_by: SplitBy | None = None,
    size: int | None = None,
    test_share: float = 0.2,
    cache: str | Path | None = None,
) -> tuple[ArrayData, tuple[str, ...]]:
    """Loads `<folder>/<class>/<recording>`, or `<folder>/train/<class>/<recording>` and `test/` beside it.

    The suffix tells the format: `.bin` of N-MNIST, `.aedat` (2.0, 3.1 or 4.0) and `.aedat4` of a DVS128,
    `.npy` with rows x, y, p and milliseconds, and `.wav` of 8 kHz, which becomes level crossings of bands.

    Args:
      folder: see `find_class_files`.
      steps: frames of a recording.
      split_by: see `frames`; by default equal event numbers of a camera, and equal times of sound.
      size: height and width of the frames of a camera, see `resize_area`; by default its own.
      test_share: where there is no `train/` and `test/`, see `find_class_files`.
      cache: the folder to keep the frames in; None: they are made anew each time.

    Returns:
      Counts `[N, T, H, W, 2]` of a camera, `[N, T, 64]` of sound, uint8 or uint16; and the names of the
      classes.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: as `find_class_files`; a recording is damaged, there are those of several sensors, an option
        is outside its range, or all are too many for the memory of this machine.
      ModuleNotFoundError: AEDAT 4.0 needs the package aedat.
    """
    folder = Path(folder)
    found = find_class_files(folder, FORMATS, test_share=test_share)
    height, width = _sensor(found)
    if height == 1 and size is not None:
        raise ValueError(f"{folder}: size is for recordings of cameras, got {size} for sound")
    shape = (width * 2,) if height == 1 else (size or height, size or width, 2)
    how: SplitBy = split_by or ("time" if height == 1 else "number")
    number = len(found.train) + len(found.test)
    check_memory(number * steps * int(np.prod(shape)), f"{folder}: {number} recordings of {steps} x {shape}")
    train, test = ([RecordingFile(*file) for file in split] for split in (found.train, found.test))
    framing = {"steps": steps, "split_by": how, "size": size}
    data = load_frames(
        "events",
        folder,
        (train, test),
        read=lambda source: [(FORMATS[source.path.suffix.lower()].read(source.path), source.label)],
        frame=lambda events: frames(events, **framing).reshape(steps, *shape),
        options=framing | {"test_share": test_share, "classes": found.classes},
        classes=len(found.classes),
        cache=cache,
    )
    return data, found.classes


def _sensor(found: ClassFiles) -> tuple[int, int]:
    """Height and width of the sensor that all recordings are of."""
    files = [(FORMATS[path.suffix.lower()].sensor, path) for path, _ in (*found.train, *found.test)]
    first, one = files[0]
    for sensor, path in files:
        if sensor != first:
            sizes = (f"{p} is of {h} x {w}" for (h, w), p in ((first, one), (sensor, path)))
            raise ValueError(f"recordings are of several sensors: {', '.join(sizes)} pixels")
    return first
