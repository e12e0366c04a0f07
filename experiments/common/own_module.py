"""A file with data of one's own: its function `load_data(wanted) -> (data, encode)`."""

import importlib.util
import sys
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np
from common.own_batches import checked

from sltt_jax import data
from sltt_jax.blocks import first_step, time_steps
from sltt_jax.data.encoders import Encoder

FUNCTION = "load_data"


def call(path: Path, wanted: data.Wanted) -> tuple[data.ArrayData | data.BatchData, Encoder]:
    """Runs the file, and calls its function.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no Python, has no such function, or that returns something else or raises one.
    """
    function = _function(path)
    try:
        found = function(wanted)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if isinstance(found, tuple) and len(found) == 2:
        own: Any = found[0]
        encode = found[1]
        if isinstance(own, (data.ArrayData, data.BatchData)) and callable(encode):
            if own.classes < 2:
                raise ValueError(f"{path}: there must be at least two classes, got {own.classes}")
            own = checked(own, path) if isinstance(own, data.BatchData) else own
            return own, cast(Encoder, encode)
    parts = found if isinstance(found, tuple) else (found,)
    got = ", ".join(type(part).__name__ for part in parts)
    raise ValueError(
        f"{path}: {FUNCTION} must return (sltt_jax.data.ArrayData or BatchData, encoder), got ({got})"
    )


def _function(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"own_data_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        where = f"line {error.lineno}: " if error.lineno else ""
        raise ValueError(f"{path}: {where}{error.msg}") from error
    function = getattr(module, FUNCTION, None)
    if not callable(function):
        raise ValueError(f"{path}: it has no function {FUNCTION}(wanted)")
    return function


def sample_of(own: data.ArrayData | data.BatchData, path: Path) -> data.ArrayData:
    """Takes the first batches of either split as arrays, which are checked; arrays are returned as they are.

    Raises:
      ValueError: they do not go together.
    """
    if isinstance(own, data.ArrayData):
        return own
    train, test = own.first_batch(), next(iter(own.test()))
    chosen = np.asarray(test["mask"]) != 0
    x, y = (jax.tree.map(lambda a: a[chosen], test[name]) for name in ("x", "y"))
    try:
        return data.ArrayData(train["x"], train["y"], x, y, classes=own.classes)
    except ValueError as error:
        raise ValueError(f"{path}: first batch: {error}") from error


def checked_step(encode: Encoder, x: np.ndarray, T: int, path: Path) -> tuple[int, ...]:
    """Shape of a sample in one step, `[...]`, as the encoder makes it of samples `[B, ...]`.

    Raises:
      ValueError: the encoder fails on such samples, or makes another number of steps than T.
    """
    try:
        inputs = jax.eval_shape(lambda x: encode(x, None), x)
        steps, step = time_steps(inputs), jax.eval_shape(first_step, inputs)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: the encoder cannot encode {list(x.shape)}: {error}") from error
    if steps != T:
        raise ValueError(f"{path}: the encoder makes {steps} steps of {list(x.shape)}, and the run has T={T}")
    shape = getattr(step, "shape", ())
    if shape[:1] != (len(x),):
        raise ValueError(
            f"{path}: the encoder must make arrays [T, B, ...] of B={len(x)} samples, got {step}"
        )
    return shape[1:]
