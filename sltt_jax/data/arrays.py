"""Data sets that fit in memory, as checked arrays."""

import dataclasses
import os
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class ArrayData:
    """A classification data set in memory.

    Attributes:
      train_x, test_x: inputs, `[N, ...]`: floating point, or unsigned integers (pixels, event counts).
      train_y, test_y: class numbers 0..classes-1, `[N]`, integers; or of every step, `{"y": [N, T], "weight":
        [N, T]}`, where steps without a label have the weight 0.
      classes: number of classes.

    Raises:
      ValueError: something is no array, inputs and labels differ in number, the inputs of the two splits
        differ in shape, an input is neither an unsigned integer nor a finite number, or a label is not an
        integer in 0..classes-1.
    """

    train_x: np.ndarray
    train_y: Any
    test_x: np.ndarray
    test_y: Any
    classes: int

    def __post_init__(self):
        for field in dataclasses.fields(self)[:4]:
            value = getattr(self, field.name)
            for array in value.values() if isinstance(value, dict) else (value,):
                if not isinstance(array, np.ndarray):
                    raise ValueError(f"{field.name} must be a NumPy array, got {type(array).__name__}")
        for split, x, y in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            if isinstance(y, dict):
                y = _labels_of_steps(split, x, y)
            elif len(x) == 0 or y.shape != (len(x),):
                raise ValueError(
                    f"{split}: expected N >= 1 inputs and labels [N], got {x.shape} and {y.shape}"
                )
            floating = np.issubdtype(x.dtype, np.floating)
            if not floating and not np.issubdtype(x.dtype, np.unsignedinteger):
                raise ValueError(
                    f"{split}: inputs must be floating point or unsigned integers, got {x.dtype}"
                )
            if floating and not np.isfinite(x).all():
                raise ValueError(f"{split}: input {int(np.argwhere(~np.isfinite(x))[0, 0])} is not finite")
            if not np.issubdtype(y.dtype, np.integer):
                raise ValueError(f"{split}: labels must be integers, got {y.dtype}")
            wrong = np.argwhere((y < 0) | (y >= self.classes))
            if len(wrong):
                raise ValueError(
                    f"{split}: label {y[tuple(wrong[0])]} of sample {wrong[0][0]} is outside "
                    f"0..{self.classes - 1}"
                )
        one, other = ((x.shape[1:], x.dtype) for x in (self.train_x, self.test_x))
        if one != other:
            raise ValueError(f"train and test inputs differ in shape or type: {one}, {other}")


def _labels_of_steps(split, x, y):
    """Checks the labels and weights of every step, and returns the labels."""
    shapes = {name: a.shape for name, a in y.items()}
    if len(x) == 0 or shapes != dict.fromkeys(("y", "weight"), x.shape[:2]):
        raise ValueError(
            f"{split}: expected inputs [N, T, ...], y and weight [N, T], got {x.shape}, {shapes}"
        )
    if not (np.isfinite(y["weight"]).all() and (y["weight"] >= 0).all() and y["weight"].any()):
        raise ValueError(f"{split}: weights must be finite numbers >= 0, some of them above 0")
    return y["y"]


def check_memory(size: int, what: str):
    """Raises a ValueError if `what`, of `size` bytes, is more than this machine has memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise ValueError(f"{what} need {size / 1e9:.1f} GB, and this machine has {memory / 1e9:.1f} GB")
