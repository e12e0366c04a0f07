"""Data sets that fit in memory: checked arrays, and the batches made of them."""

import dataclasses
from collections.abc import Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class ArrayData:
    """A classification data set in memory.

    Attributes:
      train_x, test_x: inputs, `[N, ...]`, floating point.
      train_y, test_y: class numbers 0..classes-1, `[N]`, integers.
      classes: number of classes.

    Raises:
      ValueError: inputs and labels differ in number, the inputs of the two splits differ in shape, an input
      is
        not floating point or not finite, or a label is not an integer in 0..classes-1.
    """

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    classes: int

    def __post_init__(self):
        for split, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            if len(x) == 0 or y.shape != (len(x),):
                raise ValueError(
                    f"{split}: expected N >= 1 inputs and labels [N], got {x.shape} and {y.shape}"
                )
            if not np.issubdtype(x.dtype, np.floating):
                raise ValueError(f"{split}: inputs must be floating point, got {x.dtype}")
            if not np.isfinite(x).all():
                raise ValueError(f"{split}: input {int(np.argwhere(~np.isfinite(x))[0, 0])} is not finite")
            if not np.issubdtype(y.dtype, np.integer):
                raise ValueError(f"{split}: labels must be integers, got {y.dtype}")
            wrong = np.flatnonzero((y < 0) | (y >= self.classes))
            if len(wrong):
                raise ValueError(
                    f"{split}: label {y[wrong[0]]} of sample {wrong[0]} is outside 0..{self.classes - 1}"
                )
        if self.train_x.shape[1:] != self.test_x.shape[1:]:
            raise ValueError(
                f"train and test inputs differ in shape: {self.train_x.shape[1:]}, {self.test_x.shape[1:]}"
            )


def shuffled_batches(
    x: np.ndarray, y: np.ndarray, batch_size: int, *, seed: int, epoch: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of one epoch in an order drawn from `(seed, epoch)`; what does not fill a batch is left out.

    Raises:
      ValueError: there are fewer samples than one batch.
    """
    if not 1 <= batch_size <= len(x):
        raise ValueError(f"batch_size must be in 1..{len(x)}, the number of samples, got {batch_size}")
    order = np.random.default_rng([seed, epoch]).permutation(len(x))
    for start in range(0, len(x) - batch_size + 1, batch_size):
        chosen = order[start : start + batch_size]
        yield {"x": x[chosen], "y": y[chosen]}


def padded_batches(x: np.ndarray, y: np.ndarray, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """All samples in order, once each; the last batch is filled up, and `mask` `[B]` tells which count."""
    for start in range(0, len(x), batch_size):
        xs, ys = x[start : start + batch_size], y[start : start + batch_size]
        missing = batch_size - len(xs)
        pad = lambda a: np.pad(a, [(0, missing)] + [(0, 0)] * (a.ndim - 1))  # noqa: B023
        yield {"x": pad(xs), "y": pad(ys), "mask": pad(np.ones(len(xs), np.float32))}
