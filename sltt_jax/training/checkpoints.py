"""Checkpoints of a run: the last ones and the best are kept, damaged ones are put aside."""

import contextlib
import itertools
import math
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint.path import atomicity

from sltt_jax.training.checkpoint_files import Damaged, Parts, begin_to_write, read, read_about
from sltt_jax.training.locks import locked
from sltt_jax.training.processes import on_first, same_everywhere

CHECKPOINTS = "checkpoints"
DAMAGED = "checkpoints_damaged"


class Checkpoints:
    """Checkpoints in `<workdir>/checkpoints`, to be used in a `with` statement, which locks the workdir.

    Kept are the last `keep` and the one with the best score, of equal ones the later. With several processes
    all must make the same calls, on one file system.

    Args:
      workdir: an existing directory.
      keep: how many of the last are kept, >= 1; two, so that one is left if the last gets damaged.

    Raises:
      ValueError: `keep` is below 1.
      BlockingIOError: another run is at work in the workdir.
    """

    # Orbax's own Checkpointer, with its policies LatestN and BestN, would keep the same ones. But it believes
    # scores whose bytes were changed, it deletes a checkpoint file by file under its number, so that a kill
    # leaves half of it as if it were damaged, and after a full disk it leaves what it had written by then.

    def __init__(self, workdir: Path, *, keep: int = 2):
        if keep < 1:
            raise ValueError(f"keep must be >= 1, got {keep}")
        self._root, self._damaged = workdir.absolute() / CHECKPOINTS, workdir.absolute() / DAMAGED
        self._keep = keep
        self._pending = None
        self._check_place = lambda: None

    def __enter__(self) -> "Checkpoints":
        with contextlib.ExitStack() as stack:
            on_first(lambda: self._open(stack))
            self._lock = stack.pop_all()
        return self

    def _open(self, stack):
        self._check_place = stack.enter_context(locked(self._root.parent))
        self._root.mkdir(exist_ok=True)
        self._remove_unfinished()

    def __exit__(self, kind, error, traceback):
        # What one process alone may raise is no time to wait for the others; a loss that is not finite is.
        with self._lock:
            if jax.process_count() == 1 or kind is None or issubclass(kind, FloatingPointError):
                self.wait()

    @property
    def numbers(self) -> list[int]:
        """Numbers of the checkpoints that there are, in order."""
        return _numbers(self._root)

    def save(self, number: int, parts: Parts, progress: dict[str, Any], *, score: float | None = None):
        """Begins to write a checkpoint, once the one before is on disk.

        Args:
          number: larger than those before.
          parts: trees of arrays.
          progress: anything else, as JSON.
          score: the best one's checkpoint is kept.

        Raises:
          OSError: this or the checkpoint before could not be written; those before are intact. Or the workdir
            was removed.
          FloatingPointError: `parts` or `score` hold NaN.
          TypeError: `parts` hold something that is no array and no number.
          ValueError: `number` is not larger than those before.
        """
        self.wait()
        self._check_place()
        if self.numbers and number <= self.numbers[-1]:
            raise ValueError(f"number must be above {self.numbers[-1]}, that of the last, got {number}")
        if score is not None and math.isnan(score):
            raise FloatingPointError(f"score is {score}; checkpoint {number} was not saved")
        try:
            self._pending = number, begin_to_write(self._root / str(number), parts, progress, score)
        except OSError as error:
            raise self._unsaved(number, error) from error

    def wait(self):
        """Returns when what was saved is on disk, and what is not to be kept is gone.

        Raises:
          OSError: it could not be written; the checkpoints before are intact. Or the workdir was removed.
        """
        if self._pending is None:
            return
        (number, written), self._pending = self._pending, None
        try:
            written()
        except OSError as error:
            raise self._unsaved(number, error) from error
        on_first(self._remove_old)

    def load(self, like: Parts) -> tuple[Parts, dict[str, Any]] | None:
        """Reads parts and progress of the last checkpoint that is whole; None if there never was one.

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
                loaded = read(self._root / str(number), like)
            except Damaged as error:
                fault = error.reason
            if same_everywhere(str(loaded is None)) and loaded is not None:
                return loaded
            on_first(lambda: self._put_aside(number, fault))  # noqa: B023
        if self._damaged.is_dir():
            raise ValueError(
                f"all checkpoints of {self._root.parent} are damaged; they were moved to {self._damaged}"
            )
        return None

    def clear(self):
        """Deletes all checkpoints, the last one first, and the damaged ones; what else lies there stays.

        Of several processes the first alone may call this.

        Raises:
          OSError: one cannot be deleted, or their directory is a symbolic link: to whose checkpoints?
        """
        for folder in (self._root, self._damaged):
            if folder.is_symlink():
                raise OSError(f"{folder} is a symbolic link; delete what it leads to, or the link, by hand")
        for number in reversed(self.numbers):
            self._delete(number)
        if self._damaged.is_dir():
            for path in self._damaged.iterdir():
                if re.fullmatch(r"\d+(_\d+)?", path.name):
                    _remove(path)
            if not any(self._damaged.iterdir()):
                self._damaged.rmdir()

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
            f"checkpoint {number} could not be written to {self._root}: {error}. "
            + (f"The earlier ones are intact: {before}" if before else "There is no earlier one")
        )

    def _remove_unfinished(self):
        for path in self._root.iterdir():
            number, suffix, _ = path.name.partition(atomicity.TMP_DIR_SUFFIX)
            if suffix and number.isdecimal():
                _remove(path)

    def _remove_old(self):
        self._check_place()
        scores = {}
        for number in self.numbers:
            try:
                scores[number] = read_about(self._root / str(number))["score"]
            except Damaged as error:
                self._put_aside(number, error.reason)
        for number in scores.keys() - {*list(scores)[-self._keep :], _best(scores)}:
            self._delete(number)

    def _delete(self, number):
        # Renamed first: a kill must not leave half of it under its number, as if it were damaged.
        doomed = self._root / f"{number}{atomicity.TMP_DIR_SUFFIX}"
        _remove((self._root / str(number)).rename(doomed))


def load_parts(folder: Path, like: Parts, *, best: bool = False) -> Parts:
    """Reads some parts of a checkpoint, for a run of its own.

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
    if one:
        number = int(folder.name)
    elif best:
        number = _best({n: read_about(root / str(n))["score"] for n in numbers})
    else:
        number = max(numbers, default=None)
    if number not in numbers:
        which = "checkpoint with a score" if best else "such checkpoint"
        raise FileNotFoundError(f"{folder}: there is no {which} among {numbers}")
    return read(root / str(number), like)[0]


def _numbers(root):
    return sorted(int(path.name) for path in root.iterdir() if re.fullmatch("0|[1-9][0-9]*", path.name))


def _remove(path):
    """Deletes a file, a folder, or a link without what it leads to."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _best(scores):
    """Number with the best score, of equal ones the later; None if none has one."""
    return max((n for n in scores if scores[n] is not None), key=lambda n: (scores[n], n), default=None)
