"""Files whose folder tells their class: `<folder>/<class>/<file>`, or the same in `train/` and `test/`."""

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

# What file managers leave behind.
LEFT_BEHIND = "thumbs.db", "desktop.ini"

SPLITS = "train", "test"


class LabelledFile(NamedTuple):
    """File of one sample, and its class."""

    path: Path
    label: int


class ClassFiles(NamedTuple):
    """Files of a data set; both splits are in an order without meaning, the same every time.

    Attributes:
      classes: names of the classes, in alphabetical order, which gives the labels.
      train, test: the files of both splits.
    """

    classes: tuple[str, ...]
    train: list[LabelledFile]
    test: list[LabelledFile]


def find_class_files(folder: str | Path, suffixes: Collection[str], *, test_share: float = 0.2) -> ClassFiles:
    """Finds the files of all classes.

    Where the folder has no `train/` and `test/`, the files are split by the checksums of their names: every
    class alike, always the same, and hardly changed by a file more. What is hidden is not looked at.

    Args:
      folder: holds a folder for every class, or `train/` and `test/`, which each hold those.
      suffixes: of the files that count, in lower case, with the dot.
      test_share: share of the files of each class for testing, above 0 and below 1, where it is drawn.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: it has no class folders, or one alone; a class has too few files, or files of another kind;
        the splits differ in their classes, or there is another folder beside them.
    """
    folder = Path(folder)
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must be above 0 and below 1, got {test_share}")
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; it should hold a folder for every class")
    given = [name for name in SPLITS if (folder / name).is_dir() and _folders(folder / name)]
    if len(given) == 1:
        other = next(name for name in SPLITS if name not in given)
        raise ValueError(f"{folder}: it has {given[0]}/ with class folders, but no such {other}/")
    if given:
        train, test = (_classes(folder / name, suffixes) for name in SPLITS)
        for name in sorted(train.keys() ^ test.keys()):
            where = "train" if name in train else "test"
            raise ValueError(f"{folder}: class {name!r} is in {where}/ alone; it must be in both")
        for path in _folders(folder):
            if path.name not in SPLITS:
                raise ValueError(f"{path}: it would not be read; move it away from beside train/ and test/")
    else:
        parts = {n: _drawn(folder / n, paths, test_share) for n, paths in _classes(folder, suffixes).items()}
        train, test = ({name: part[i] for name, part in parts.items()} for i in (0, 1))
    splits = (
        [LabelledFile(p, y) for y, paths in enumerate(s.values()) for p in paths] for s in (train, test)
    )
    return ClassFiles(tuple(train), *(sorted(s, key=lambda file: _rank(file.path)) for s in splits))


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _classes(folder: Path, suffixes: Collection[str]) -> dict[str, list[Path]]:
    """The files of every class folder, by its name."""
    folders = _folders(folder)
    lost = sorted(p.name for p in folder.iterdir() if p.is_file() and p.suffix.lower() in suffixes)
    if not folders or lost:
        what = f"{lost[0]} lies in no class folder" if lost else "no class folders"
        raise ValueError(f"{folder}: {what}; expected {folder / '<class>' / '<file>'}")
    if len(folders) == 1:
        raise ValueError(f"{folder}: one class alone, {folders[0].name!r}; there must be at least two")
    return {path.name: _files(path, suffixes) for path in folders}


def _files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    paths = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    paths = [p for p in paths if p.name.lower() not in LEFT_BEHIND]
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: a link to nothing")
        if path.is_dir() or path.suffix.lower() not in suffixes:
            what = "a folder" if path.is_dir() else "not of a kind that is read"
            raise ValueError(f"{path}: {what}; class folders hold {', '.join(sorted(suffixes))} alone")
    if not paths:
        raise ValueError(f"{folder}: no files in this class folder")
    return paths


def _drawn(folder: Path, paths: Sequence[Path], share: float) -> tuple[list[Path], list[Path]]:
    """Splits the files of a class into those for training and those for testing."""
    if len(paths) < 2:
        raise ValueError(f"{folder}: a class needs at least two files, one for testing, got {len(paths)}")
    ranked = sorted(paths, key=_rank)
    n = min(max(round(share * len(paths)), 1), len(paths) - 1)
    return ranked[n:], ranked[:n]


def _rank(path: Path) -> str:
    return hashlib.sha256(f"{path.parent.name}/{path.name}".encode(errors="surrogateescape")).hexdigest()
