"""Batches of one's own, each of which is checked when it comes: late ones fail as clearly as the first."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sltt_jax import data
from sltt_jax.blocks import PyTree
from sltt_jax.data.arrays import check_samples

KEYS = {"train": {"x", "y"}, "test": {"x", "y", "mask"}}


class CheckedBatches:
    """Training batches of a file, as they are; what is wrong with one is a ValueError that names both."""

    def __init__(self, batches: data.Batches, check: Callable[[str, int, Any], None], path: Path):
        self._batches, self._check, self._path = batches, check, path
        self._number = 0
        self.steps_per_epoch = batches.steps_per_epoch

    def __iter__(self) -> Iterator[data.Batch]:
        return self

    def __next__(self) -> data.Batch:
        try:
            batch = next(self._batches)
        except StopIteration:
            raise ValueError(
                f"{self._path}: train ended after {self._number} batches; it must go on without end"
            ) from None
        self._check("train", self._number, batch)
        self._number += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        return self._batches.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._number = 0
        self._batches.set_state(state)


def checked(own: data.BatchData, path: Path) -> data.BatchData:
    """Makes batches check themselves against the first of either split, which are checked now.

    Args:
      own: what `load_data` of the file returned.
      path: of the file.

    Raises:
      ValueError: the first batches are not as they should be, `test` has none or not the second time, or JSON
        cannot hold the state of `train`.
    """
    try:
        json.dumps(own.train.get_state())
    except TypeError as error:
        raise ValueError(
            f"{path}: get_state must return plain numbers and strings, got {own.train.get_state()}: {error}"
        ) from error
    first = {"train": own.first_batch(), "test": next(iter(own.test()), None)}
    if first["test"] is None or next(iter(own.test()), None) is None:
        when = "returned no batches" if first["test"] is None else "has no batches the second time"
        raise ValueError(f"{path}: test() {when}; it must return all of them at every call")
    like = {name: _forms(batch) for name, batch in first.items()}

    def check(name: str, number: int, batch: Any):
        what = f"{path}: {name} batch {number}"
        if not isinstance(batch, dict) or set(batch) != KEYS[name]:
            got = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
            raise ValueError(f"{what} must be a dict of {sorted(KEYS[name])}, got {got}")
        for leaf in jax.tree.leaves(batch):
            if not isinstance(leaf, np.ndarray):
                raise ValueError(f"{what} must hold NumPy arrays, got {type(leaf).__name__}")
        if (forms := _forms(batch)) != like[name]:
            raise ValueError(f"{what} is {forms}, and the first was {like[name]}")
        counted = np.asarray(batch.get("mask", np.ones(len(batch["x"])))) != 0
        if counted.shape != (len(batch["x"]),):
            raise ValueError(f"{what}: mask must be [B], got {counted.shape} for {batch['x'].shape}")
        x, y = (jax.tree.map(lambda a: a[counted], batch[part]) for part in ("x", "y"))
        if not len(x):  # a process may have no sample of the last batch
            return
        try:
            check_samples(x, y, own.classes)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from error

    def test() -> Iterable[dict[str, PyTree]]:
        number = -1
        for number, batch in enumerate(own.test()):
            check("test", number, batch)
            yield batch
        if number < 0:
            raise ValueError(f"{path}: test() returned no batches; it must return all of them at every call")

    for name, batch in first.items():
        check(name, 0, batch)
    return data.BatchData(CheckedBatches(own.train, check, path), test, own.classes)


def _forms(batch: Any) -> str:
    """Types and shapes in words, as far as there are arrays."""
    form = lambda a: f"{a.dtype}{list(a.shape)}" if isinstance(a, np.ndarray) else type(a).__name__
    return str(jax.tree.map(form, batch)).replace("'", "")
