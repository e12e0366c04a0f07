"""Data sets of event cameras, from the files of their official releases to frames `[N, T, H, W, 2]`."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from sltt_jax.damage import check_is_file, reading
from sltt_jax.data.arrays import ArrayData
from sltt_jax.data.events.binning import Events, SplitBy, between, frames
from sltt_jax.data.events.conversion import RecordingFile, class_files, load_frames
from sltt_jax.data.events.files import read_aedat, read_gesture_npy, read_nmnist

CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
GESTURES = 11


def load_nmnist(
    folder: str | Path,
    *,
    steps: int = 10,
    split_by: SplitBy = "number",
    size: int = 34,
    cache: str | Path | None = None,
) -> ArrayData:
    """Loads N-MNIST (Orchard et al. 2015): `<folder>/Train|Test/<digit>/*.bin`.

    Args:
      folder: the extracted release, or a part of its recordings.
      steps, split_by, size: of the frames, see `frames`.
      cache: the folder to keep the frames in; None: they are made anew each time.

    Returns:
      Frames `[N, T, size, size, 2]`, uint8 or uint16; the splits are the release's.

    Raises:
      FileNotFoundError: a folder is missing, or holds no recordings.
      ValueError: a file is damaged, a folder stands for no digit, or an option is outside its range.
    """
    folder = Path(folder)
    digits = [str(d) for d in range(10)]
    splits = class_files(folder / "Train", digits, "*.bin"), class_files(folder / "Test", digits, "*.bin")
    options = {"steps": steps, "split_by": split_by, "size": size}
    return load_frames(
        "nmnist",
        folder,
        splits,
        read=lambda source: [(read_nmnist(source.path), source.label)],
        frame=lambda events: frames(events, **options),
        options=options,
        classes=10,
        cache=cache,
    )


def load_cifar10_dvs(
    folder: str | Path,
    *,
    steps: int = 10,
    split_by: SplitBy = "number",
    size: int = 48,
    preprocessing: Literal["counts", "paper"] = "counts",
    cache: str | Path | None = None,
) -> ArrayData:
    """Loads CIFAR10-DVS (Li et al. 2017): `<folder>/<class>/cifar10_<class>_<i>.aedat` (2.0) or `.aedat4`.

    Split as by Meng et al. (2023): of every class, i = 0..899 is for training and 900..999 for testing, where
    i is the number in the file's name. Both splits are in the order of class and i.

    Args:
      folder: the extracted release.
      steps, split_by, size: of the frames, see `frames`.
      preprocessing: "counts" are resized by area, see `resize_area`; "paper" is what the authors' network was
        trained on, see `paper_image`.
      cache: the folder to keep the frames in; None: they are made anew each time.

    Returns:
      Frames `[N, T, size, size, 2]`: counts in uint8 or uint16; the paper's in uint8, to be divided by 255.

    Raises:
      FileNotFoundError: a folder is missing, or holds no recordings.
      ValueError: a file is damaged or misnamed, or an option is outside its range.
      ModuleNotFoundError: "paper" needs Pillow, `.aedat4` files need the package aedat.
    """
    folder = Path(folder)
    splits = _cifar10_dvs_splits(class_files(folder, CIFAR10_CLASSES, "*.aedat*"))
    framing = {"steps": steps, "split_by": split_by}
    if preprocessing == "counts":
        frame = lambda events: frames(events, **framing, size=size)
    elif preprocessing == "paper":
        frame = lambda events: paper_image(frames(events, **framing), size)
    else:
        raise ValueError(f'preprocessing must be "counts" or "paper", got {preprocessing!r}')
    return load_frames(
        "cifar10_dvs",
        folder,
        splits,
        read=lambda source: [(read_aedat(source.path), source.label)],
        frame=frame,
        options={**framing, "size": size, "preprocessing": preprocessing},
        classes=len(CIFAR10_CLASSES),
        cache=cache,
    )


def load_dvs_gesture(
    folder: str | Path,
    *,
    steps: int = 20,
    split_by: SplitBy = "number",
    size: int = 128,
    cache: str | Path | None = None,
) -> ArrayData:
    """Loads DVS128 Gesture (Amir et al. 2017), 11 classes, from either of its releases.

    The original, 1,176 and 288 gestures: `<folder>/trials_to_train.txt` and `trials_to_test.txt` list AEDAT
    3.1 recordings; beside `<name>.aedat` lies `<name>_labels.csv`: class 1..11, start, end in microseconds.
    The cut one, 1,077 and 264: `<folder>/ibmGestureTrain|ibmGestureTest/<user>_<light>/<class 0..10>.npy`.

    Args:
      folder: the extracted release; where both are, the original is read.
      steps, split_by, size: of the frames, see `frames`.
      cache: the folder to keep the frames in; None: they are made anew each time.

    Returns:
      Frames `[N, T, size, size, 2]`, uint8 or uint16; the splits are the release's.

    Raises:
      FileNotFoundError: the folder holds neither release, or a recording is missing.
      ValueError: a file is damaged, a class is outside its range, or an option is.
    """
    folder = Path(folder)
    original = (folder / "trials_to_train.txt").exists()
    if original:
        splits = _trials(folder / "trials_to_train.txt"), _trials(folder / "trials_to_test.txt")
    else:
        splits = _cut_gestures(folder / "ibmGestureTrain"), _cut_gestures(folder / "ibmGestureTest")
    options = {"steps": steps, "split_by": split_by, "size": size}
    return load_frames(
        "dvs_gesture",
        folder,
        splits,
        read=_read_trial if original else lambda source: [(read_gesture_npy(source.path), source.label)],
        frame=lambda events: frames(events, **options),
        options=options,
        classes=GESTURES,
        cache=cache,
    )


def paper_image(counts: np.ndarray, size: int) -> np.ndarray:
    """Resizes frames of DVS-CIFAR10 as the SLTT authors' ToPILImage, Resize and ToTensor do.

    Counts times 255 wrap around in uint8 (1 becomes 255, 2 becomes 254), and Pillow takes two channels for
    brightness and opacity: OFF counts where there are no ON counts are transparent, and lost in resizing.

    Args:
      counts: `[T, H, W, 2]`, integers.
      size: height and width of the result.

    Returns:
      `[T, size, size, 2]`, uint8; ToTensor divides it by 255.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('preprocessing="paper" resizes with Pillow: pip install pillow') from error
    wrapped = (counts.astype(np.int64) * 255).astype(np.uint8)
    images = (Image.fromarray(image) for image in wrapped)
    return np.stack([np.asarray(i.resize((size, size), Image.Resampling.BILINEAR)) for i in images])


def _cifar10_dvs_splits(sources: list[RecordingFile]) -> tuple[list[RecordingFile], list[RecordingFile]]:
    numbered: dict[tuple[int, int], RecordingFile] = {}
    for source in sources:
        name = rf"cifar10_{CIFAR10_CLASSES[source.label]}_(\d{{1,3}})\.aedat4?"
        named = re.fullmatch(name, source.path.name)
        if not named:
            raise ValueError(f"{source.path}: not named cifar10_<its folder>_<0..999>.aedat")
        other = numbered.setdefault((source.label, int(named[1])), source)
        if other is not source:
            raise ValueError(f"{source.path}: the same recording as {other.path.name}")
    order = sorted(numbered)
    train = [numbered[label, i] for label, i in order if i < 900]
    test = [numbered[label, i] for label, i in order if i >= 900]
    if not train or not test:
        raise FileNotFoundError(f"{sources[0].path.parent.parent}: needs recordings 0..899 and 900..999")
    return train, test


def _trials(listing: Path) -> list[RecordingFile]:
    check_is_file(listing)
    text = listing.read_bytes()
    with reading(listing, "a list of recordings beside it"):
        names = text.decode().split()
        if not names:
            raise ValueError("it is empty")
        if outside := [name for name in names if not re.fullmatch(r"\w[\w.-]*", name)]:
            raise ValueError(f"{outside[0]!r} is not the name of one")
    paths = [listing.parent / name for name in names]
    return [RecordingFile(path, -1, (path.with_name(f"{path.stem}_labels.csv"),)) for path in paths]


def _read_trial(source: RecordingFile) -> Iterator[tuple[Events, int]]:
    """Gestures of an original recording, cut as the csv beside it says."""
    events, (labels,) = read_aedat(source.path), source.beside
    check_is_file(labels)
    text = labels.read_bytes()
    with reading(labels, "rows under class,startTime_usec,endTime_usec"):
        header, *lines = text.decode().split() or [""]
        if not header.startswith("class,") or not lines:
            raise ValueError(f"it has {len(lines)} under {header[:50]!r}")
    for i, line in enumerate(lines):
        with reading(f"{labels}, row {i + 1}", "a class, a start and an end"):
            label, start, end = map(int, line.split(","))
            if not 1 <= label <= GESTURES:
                raise ValueError(f"class {label} is outside 1..{GESTURES}")
            gesture = between(events, start, end)
        yield gesture, label - 1


def _cut_gestures(folder: Path) -> list[RecordingFile]:
    paths = sorted(folder.glob("*/*.npy"))
    if not paths:
        raise FileNotFoundError(
            f"{folder.parent}: neither trials_to_train.txt nor {folder.name}/<user>_<light>/<class>.npy"
        )
    wrong = [path for path in paths if not re.fullmatch(r"\d|10", path.stem)]
    if wrong:
        raise ValueError(f"{wrong[0]}: the name is no class 0..{GESTURES - 1}")
    return [RecordingFile(path, int(path.stem)) for path in paths]
