"""Data sets that fit in memory, as checked arrays."""

import dataclasses
import operator
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
      ValueError: something is no array, inputs and labels differ in number, the two splits differ in the
        shape of inputs or the kind of labels, an input is neither an unsigned integer nor a finite number, or
        more than 32 bits hold, or a label is not an integer in 0..classes-1.
    """

    train_x: np.ndarray
    train_y: Any
    test_x: np.ndarray
    test_y: Any
    classes: int

    def __post_init__(self):
        check_classes(self.classes)
        splits = {"train": (self.train_x, self.train_y), "test": (self.test_x, self.test_y)}
        for split, (x, y) in splits.items():
            for name, array in {"x": x, **(y if isinstance(y, dict) else {"y": y})}.items():
                if not isinstance(array, np.ndarray):
                    raise ValueError(f"{split}_{name} must be a NumPy array, got {type(array).__name__}")
            try:
                check_samples(x, y, self.classes)
            except ValueError as error:
                raise ValueError(f"{split}: {error}") from error
        one, other = ((x.shape[1:], x.dtype) for x in (self.train_x, self.test_x))
        if one != other:
            raise ValueError(f"train and test inputs differ in shape or type: {one}, {other}")
        if isinstance(self.train_y, dict) != isinstance(self.test_y, dict):
            kinds = ("at each step" if isinstance(y, dict) else "one a sample" for _, y in splits.values())
            raise ValueError("train and test labels differ in kind: {}, {}".format(*kinds))


def check_classes(classes: Any):
    """Raises a ValueError unless `classes` is a whole number."""
    try:
        operator.index(classes)
    except TypeError:
        raise ValueError(f"classes must be a whole number, got {classes!r}") from None


def check_samples(x: np.ndarray, y: Any, classes: int):
    """Raises a ValueError unless `x` and `y` are inputs and labels as `ArrayData` has them."""
    if isinstance(y, dict):
        y = _labels_of_steps(x, y)
    elif x.ndim == 0 or len(x) == 0 or y.shape != (len(x),):
        raise ValueError(f"expected N >= 1 inputs and labels [N], got {x.shape} and {y.shape}")
    if 0 in x.shape:
        raise ValueError(f"inputs must have at least one number each, got shape {x.shape}")
    floating = np.issubdtype(x.dtype, np.floating)
    if not floating and not np.issubdtype(x.dtype, np.unsignedinteger):
        raise ValueError(f"inputs must be floating point or unsigned integers, got {x.dtype}")
    if floating and not np.isfinite(x).all():
        raise ValueError(f"input {int(np.argwhere(~np.isfinite(x))[0, 0])} is not finite")
    # On a device float64 becomes float32, and uint64 uint32: what is larger would wrap, or be infinite.
    largest = float(np.finfo(np.float32).max) if floating else 2**32 - 1
    if x.dtype.itemsize > 4 and (high := max(x.max(), -x.min() if floating else 0)) > largest:
        raise ValueError(f"inputs must fit in 32 bits, got {x.dtype} up to {high:.10g}")
    if not np.issubdtype(y.dtype, np.integer):
        raise ValueError(f"labels must be integers, got {y.dtype}")
    if len(wrong := np.argwhere((y < 0) | (y >= classes))):
        label, sample = y[tuple(wrong[0])], wrong[0][0]
        raise ValueError(f"label {label} of sample {sample} is outside 0..{classes - 1}")


def _labels_of_steps(x, y):
    """Checks the labels and weights of every step, and returns the labels."""
    shapes = {name: a.shape for name, a in y.items()}
    if x.ndim < 2 or len(x) == 0 or shapes != dict.fromkeys(("y", "weight"), x.shape[:2]):
        raise ValueError(f"expected inputs [N, T, ...], y and weight [N, T], got {x.shape}, {shapes}")
    if y["weight"].dtype.kind not in "fiub":
        raise ValueError(f"weights must be numbers, got {y['weight'].dtype}")
    if not (np.isfinite(y["weight"]).all() and (y["weight"] >= 0).all() and y["weight"].any()):
        raise ValueError("weights must be finite numbers >= 0, some of them above 0")
    return y["y"]


def check_memory(size: int, what: str):
    """Raises a ValueError if `what`, of `size` bytes, is more than this machine has memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise ValueError(f"{what} need {size / 1e9:.1f} GB, and this machine has {memory / 1e9:.1f} GB")
