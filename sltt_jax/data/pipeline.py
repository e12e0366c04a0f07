"""Batches for training: one protocol for arrays in memory and for streams from disk."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypedDict

import jax
import numpy as np

from sltt_jax.blocks import PyTree, check_at_least_one


class Batch(TypedDict):
    """Samples: `x`, inputs `[B, ...]`, and `y`, class numbers `[B]` or a pytree of arrays `[B, ...]`."""

    x: np.ndarray
    y: PyTree


class Batches(Protocol):
    """Endless iterator over batches, epoch after epoch, that can be put back to any batch.

    Attributes:
      steps_per_epoch: batches an epoch.
    """

    steps_per_epoch: int

    def __iter__(self) -> Iterator[Batch]: ...

    def __next__(self) -> Batch: ...

    def get_state(self) -> dict[str, Any]:
        """Returns what `set_state` needs to resume at the next batch; plain numbers and strings."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Moves to where `get_state` was called.

        Raises:
          ValueError: on other batches than these.
        """
        ...


class ArrayBatches:
    """Batches of arrays in memory; the order of every epoch is drawn from `(seed, epoch)`.

    What does not fill a batch is left out of an epoch. With several processes all draw the same order, and
    each takes its part of every batch.

    Args:
      x, y: inputs `[N, ...]`, and labels `[N]` or a pytree of arrays `[N, ...]`.
      batch_size: samples of one batch over all processes, 1..N.
      seed: of the order.
      process, processes: the part of this process, 0..processes-1; `processes` must divide `batch_size`.

    Raises:
      ValueError: a number is outside its range, or `x` and an array of `y` differ in their N.
    """

    def __init__(
        self,
        x: np.ndarray,
        y: PyTree,
        batch_size: int,
        *,
        seed: int,
        process: int = 0,
        processes: int = 1,
    ):
        _check_samples(x, y)
        check_at_least_one("batch_size", batch_size)
        if batch_size > len(x):
            raise ValueError(f"batch_size must be in 1..{len(x)}, the number of samples, got {batch_size}")
        self._x, self._y, self._seed = x, y, seed
        self._batch_size = batch_size
        self._part = _part(batch_size, process, processes)
        self.steps_per_epoch = len(x) // batch_size
        self._of = {"samples": len(x), "batch_size": batch_size, "seed": seed}
        self._epoch, self._next, self._order = -1, self.steps_per_epoch, np.arange(0)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._next == self.steps_per_epoch:
            self._start(self._epoch + 1, 0)
        chosen = self._order[self._next * self._batch_size :][: self._batch_size][self._part]
        self._next += 1
        return {"x": self._x[chosen], "y": jax.tree.map(lambda a: a[chosen], self._y)}

    def _start(self, epoch, batch):
        self._epoch, self._next = epoch, batch
        self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self._x))

    def get_state(self) -> dict[str, int]:
        return {"epoch": self._epoch, "batch": self._next, **self._of}

    def set_state(self, state: dict[str, int]) -> None:
        check_position(state, self._of, last=self.steps_per_epoch)
        if state["epoch"] >= 0:
            self._start(state["epoch"], state["batch"])
        else:
            self._epoch, self._next = -1, self.steps_per_epoch


def check_position(state: dict[str, int], of: dict[str, int], *, last: float = math.inf):
    """Raises a ValueError unless `state` is a position, up to batch `last`, in batches of numbers `of`."""
    if {name: state.get(name) for name in of} != of or not 0 <= state["batch"] <= last:
        raise ValueError(f"{state} is no position in batches of {of}")


def padded_batches(
    x: np.ndarray, y: PyTree, batch_size: int, *, process: int = 0, processes: int = 1
) -> Iterator[dict[str, PyTree]]:
    """Yields all samples in order, once each; the last batch is filled up, `mask` `[B]` tells which count.

    Args:
      x, y: inputs `[N, ...]`, and labels `[N]` or a pytree of arrays `[N, ...]`.
      batch_size: samples of one batch over all processes.
      process, processes: the part of this process, `[B / processes, ...]` of every batch.

    Raises:
      ValueError: a number is outside its range, or `x` and an array of `y` differ in their N.
    """
    _check_samples(x, y)
    check_at_least_one("batch_size", batch_size)
    return _padded(x, y, batch_size, processes, _part(batch_size, process, processes))


def _padded(x, y, batch_size, processes, part):
    for start in range(0, len(x), batch_size):
        batch = {"x": x, "y": y, "mask": np.ones(len(x), np.float32)}
        batch = jax.tree.map(lambda a: a[start : start + batch_size][part], batch)  # noqa: B023
        missing = batch_size // processes - len(batch["mask"])
        pad = lambda a: np.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1))  # noqa: B023
        yield jax.tree.map(pad, batch)


def _check_samples(x, y):
    for path, leaf in jax.tree_util.tree_leaves_with_path(y):
        if np.shape(leaf)[:1] != (len(x),):
            raise ValueError(
                f"y{jax.tree_util.keystr(path)} must be an array [N, ...] of the N={len(x)} samples of x, "
                f"got shape {np.shape(leaf)}"
            )


def _part(batch_size, process, processes):
    """Slice of a batch that a process takes."""
    if not 0 <= process < processes or batch_size % processes:
        raise ValueError(f"process {process} of {processes} cannot have its part of {batch_size} samples")
    return slice(*(batch_size // processes * p for p in (process, process + 1)))


class Prefetch:
    """Puts batches on the device ahead of their use, so that the copy is hidden behind the update before.

    `get_state` is of the batches handed out, not of those fetched ahead.

    Args:
      batches: where they come from.
      size: batches ahead, >= 1.
      put: puts a batch on the device, or its parts on several.
    """

    def __init__(self, batches: Batches, size: int = 2, *, put: Callable[[Batch], Any] = jax.device_put):
        if size < 1:
            raise ValueError(f"size must be >= 1, got {size}")
        self._batches, self._size, self._put = batches, size, put
        self.steps_per_epoch = batches.steps_per_epoch
        self.set_state(batches.get_state())

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        while len(self._ahead) < self._size:
            batch = self._put(next(self._batches))
            self._ahead.append((batch, self._batches.get_state()))
        batch, self._state = self._ahead.popleft()
        return batch

    def get_state(self) -> dict[str, Any]:
        return self._state

    def set_state(self, state: dict[str, Any]) -> None:
        self._batches.set_state(state)
        self._state, self._ahead = state, deque()
