"""Checkpoints of a run: the last ones and the best are kept, damaged ones are put aside."""

import itertools
import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
from orbax.checkpoint.path import atomicity

from sltt_jax.training.checkpoint_files import Damaged, Parts, begin_to_write, read, read_about
from sltt_jax.training.processes import same_everywhere, wait_for_all

CHECKPOINTS = "checkpoints"
DAMAGED = "checkpoints_damaged"


class Checkpoints:
    """Checkpoints in `<workdir>/checkpoints`, to be used in a `with` statement.

    Kept are the last `keep` and the one with the best score, of equal ones the later. With several processes
    all must make the same calls, on one file system.

    Args:
      workdir: an existing directory.
      keep: how many of the last are kept, >= 1; two, so that one is left if the last gets damaged.

    Raises:
      ValueError: `keep` is below 1.
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
          OSError: this or the checkpoint before could not be written; those before are intact.
          FloatingPointError: `parts` or `score` hold a number that is not finite.
          ValueError: `number` is not larger than those before.
        """
        self.wait()
        if self.numbers and number <= self.numbers[-1]:
            raise ValueError(f"number must be above {self.numbers[-1]}, that of the last, got {number}")
        if score is not None and not math.isfinite(score):
            raise FloatingPointError(f"score is {score}; checkpoint {number} was not saved")
        try:
            self._pending = number, begin_to_write(self._root / str(number), parts, progress, score)
        except OSError as error:
            raise self._unsaved(number, error) from error

    def wait(self):
        """Returns when what was saved is on disk, and what is not to be kept is gone.

        Raises:
          OSError: it could not be written; the checkpoints before are intact.
        """
        if self._pending is None:
            return
        (number, written), self._pending = self._pending, None
        try:
            written()
        except OSError as error:
            raise self._unsaved(number, error) from error
        if jax.process_index() == 0:
            self._remove_old()
        wait_for_all(f"checkpoint {number} written")

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
            f"checkpoint {number} could not be written to {self._root}: {error}. "
            + (f"The earlier ones are intact: {before}" if before else "There is no earlier one")
        )

    def _remove_unfinished(self):
        for path in self._root.glob(f"*{atomicity.TMP_DIR_SUFFIX}*"):
            shutil.rmtree(path)

    def _remove_old(self):
        scores = {}
        for number in self.numbers:
            try:
                scores[number] = read_about(self._root / str(number))["score"]
            except Damaged as error:
                self._put_aside(number, error.reason)
        for number in scores.keys() - {*list(scores)[-self._keep :], _best(scores)}:
            # Renamed first: a kill must not leave half of it under its number, as if it were damaged.
            doomed = self._root / f"{number}{atomicity.TMP_DIR_SUFFIX}"
            shutil.rmtree((self._root / str(number)).rename(doomed))


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
    return sorted(int(path.name) for path in root.iterdir() if path.name.isdecimal())


def _best(scores):
    """Number with the best score, of equal ones the later; None if none has one."""
    return max((n for n in scores if scores[n] is not None), key=lambda n: (scores[n], n), default=None)
