"""What a file with data of one's own gets and returns: `load_data(wanted) -> (data, encode)`."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import NamedTuple

from sltt_jax.blocks import PyTree
from sltt_jax.data.arrays import check_classes
from sltt_jax.data.pipeline import Batch, Batches


class Wanted(NamedTuple):
    """What a run asks for.

    Attributes:
      T: time steps.
      batch_size: samples of a batch, over all processes.
      seed: of the run.
      process, processes: this process, and how many share every batch.
    """

    T: int
    batch_size: int
    seed: int
    process: int = 0
    processes: int = 1


@dataclasses.dataclass(frozen=True)
class BatchData:
    """A classification data set as batches, which may come from anywhere.

    Attributes:
      train: batches for training, endless, which can be put back to any batch.
      test: returns the batches for testing, once through, `{"x", "y", "mask"}` as of `padded_batches`.
      classes: number of classes.

    Raises:
      ValueError: `train` is no `Batches`, there is no batch in an epoch, `test` is no function, or `classes`
        no whole number.
    """

    train: Batches
    test: Callable[[], Iterable[dict[str, PyTree]]]
    classes: int

    def __post_init__(self):
        check_classes(self.classes)
        needs = "__next__", "steps_per_epoch", "get_state", "set_state"
        if lacks := [name for name in needs if not hasattr(self.train, name)]:
            raise ValueError(f"train must be sltt_jax.data.Batches, and has no {', '.join(lacks)}")
        if not callable(self.test):
            raise ValueError(f"test must be a function that returns batches, got {type(self.test).__name__}")
        if self.train.steps_per_epoch < 1:
            raise ValueError(f"train must have batches, got steps_per_epoch={self.train.steps_per_epoch}")

    def first_batch(self) -> Batch:
        """Takes the next training batch, and puts the batches back to before it."""
        start = self.train.get_state()
        batch = next(self.train)
        self.train.set_state(start)
        return batch
