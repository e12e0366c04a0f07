"""Generated tasks whose answer depends on the past: where dropping the temporal gradient must show.

Each is a stream of spikes or currents, silent or uninformative between what matters and the answer, which is
asked for at the last step only. All are drawn from a seed, and each says how well a network can do that sees
the last step alone.
"""

import dataclasses

import numpy as np

from sltt_jax.data.digits import load_digits


@dataclasses.dataclass(frozen=True)
class TemporalTask:
    """Samples of a task over time.

    Attributes:
      x: inputs, `[N, T, F]` float32.
      y: answers, class numbers 0..classes-1, `[N]` int32.
      asked: steps at which the answer counts, `[T]` bool.
      classes: number of classes.
      without_memory: the best accuracy of one who sees only the steps that are asked, 0..1.
    """

    x: np.ndarray
    y: np.ndarray
    asked: np.ndarray
    classes: int
    without_memory: float


def _at_the_end(T):
    return np.arange(T) == T - 1


def _check(**least):
    for name, (value, bound) in least.items():
        if value < bound:
            raise ValueError(f"{name} must be >= {bound}, got {value}")


def delayed_recall(n: int, delay: int, *, classes: int = 4, seed: int = 0) -> TemporalTask:
    """Draws a cue for the first step, silence, and the question at the last: which cue was it?

    T = delay + 2: the cue on one of the first `classes` channels, `delay` silent steps, and a signal on the
    last channel that asks. Without memory: 1/classes.

    Args:
      n: samples, >= 1.
      delay: silent steps, >= 0.
      classes: different cues, >= 2.
      seed: of the cues.

    Raises:
      ValueError: a number is below its bound.
    """
    _check(n=(n, 1), delay=(delay, 0), classes=(classes, 2))
    T = delay + 2
    y = np.random.default_rng(seed).integers(0, classes, n).astype(np.int32)
    x = np.zeros((n, T, classes + 1), np.float32)
    x[np.arange(n), 0, y] = 1
    x[:, -1, -1] = 1
    return TemporalTask(x, y, _at_the_end(T), classes, without_memory=1 / classes)


def temporal_xor(n: int, delay: int, *, seed: int = 0) -> TemporalTask:
    """Draws two cues with silence between; the answer, asked for with the second, is whether they differ.

    T = delay + 2: a bit on channels 0 and 1 at the first step, `delay` silent steps, a bit on channels 2 and
    3 at the last. The second bit alone says nothing: without memory 1/2.

    Args:
      n: samples, >= 1.
      delay: silent steps, >= 0.
      seed: of the bits.

    Raises:
      ValueError: a number is below its bound.
    """
    _check(n=(n, 1), delay=(delay, 0))
    T = delay + 2
    first, second = np.random.default_rng(seed).integers(0, 2, (2, n))
    x = np.zeros((n, T, 4), np.float32)
    x[np.arange(n), 0, first] = 1
    x[np.arange(n), -1, 2 + second] = 1
    return TemporalTask(x, (first ^ second).astype(np.int32), _at_the_end(T), 2, without_memory=0.5)


def sequential_digits() -> tuple[TemporalTask, TemporalTask]:
    """Shows the digits row by row from the top, 8 steps of 8 pixels in 0..1; asked for after the last row.

    Without memory there is only the last row. How far that goes is measured, by the nearest last row of the
    training set: an estimate from below of what is possible, not a bound.

    Returns:
      The training and the test task.
    """
    data = load_digits()
    train, test = data.train_x[..., 0], data.test_x[..., 0]
    distance = np.square(test[:, None, -1] - train[None, :, -1]).sum(-1)
    guess = np.empty(len(test), np.int32)
    for i, row in enumerate(distance):
        guess[i] = np.bincount(data.train_y[row == row.min()]).argmax()  # the most frequent of the nearest
    share = float((guess == data.test_y).mean())
    asked = _at_the_end(8)
    return (
        TemporalTask(train, data.train_y, asked, 10, without_memory=share),
        TemporalTask(test, data.test_y, asked, 10, without_memory=share),
    )
