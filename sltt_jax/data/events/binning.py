"""Recordings of event cameras as arrays, and frames counted from them."""

import dataclasses
from typing import Literal

import numpy as np

SplitBy = Literal["number", "time"]


@dataclasses.dataclass(frozen=True)
class Events:
    """One recording of an event camera, in the order of time.

    Attributes:
      t: time in microseconds, `[N]`, integers that never decrease; these and all others are kept as int64.
      x, y: column and row of the pixel, `[N]`, integers in 0..width-1 and 0..height-1.
      p: polarity, `[N]`: 0 where the light went down (OFF), 1 where it went up (ON).
      height, width: pixels of the sensor.
      reordered: how many events were out of order in the file, and had to be sorted.

    Raises:
      ValueError: there are no events, the arrays differ in length or are not integers, time runs backwards,
        or an event lies outside the sensor or has another polarity.
    """

    t: np.ndarray
    x: np.ndarray
    y: np.ndarray
    p: np.ndarray
    height: int
    width: int
    reordered: int = 0

    def __post_init__(self):
        limits = {"t": (-(2**62), 2**62), "x": (0, self.width), "y": (0, self.height), "p": (0, 2)}
        arrays = {name: np.asarray(getattr(self, name)) for name in limits}
        for name, values in arrays.items():
            if values.ndim != 1 or values.dtype.kind not in "biu":
                unit = "whole microseconds" if name == "t" else "integers"
                raise ValueError(f"{name} must be {unit} [N], got {values.dtype} {list(values.shape)}")
        lengths = [len(values) for values in arrays.values()]
        if len(set(lengths)) > 1:
            raise ValueError(f"t, x, y, p differ in length: {', '.join(map(str, lengths))}")
        if not lengths[0]:
            raise ValueError("no events")
        for name, (start, end) in limits.items():
            values = arrays[name]
            if values.min() < start or values.max() >= end:
                i = np.flatnonzero((values < start) | (values >= end))[0]
                raise ValueError(f"event {i} has {name} = {values[i]}, outside {start}..{end - 1}")
            # Unsigned numbers would wrap where one is taken from another.
            object.__setattr__(self, name, values.astype(np.int64, copy=False))
        if (self.t[1:] < self.t[:-1]).any():
            raise ValueError(f"the time of event {np.argmax(self.t[1:] < self.t[:-1]) + 1} runs backwards")


def between(events: Events, start: int, end: int) -> Events:
    """Cuts out the events with `start <= t < end`, in microseconds.

    Raises:
      ValueError: there are none.
    """
    first, last = np.searchsorted(events.t, [start, end])
    if first >= last:
        raise ValueError(f"no events from {start} to {end} us")
    cut = {name: getattr(events, name)[first:last] for name in ("t", "x", "y", "p")}
    return dataclasses.replace(events, **cut)


def frames(
    events: Events, steps: int, *, split_by: SplitBy = "number", size: int | None = None
) -> np.ndarray:
    """Counts the events in `steps` bins, as SpikingJelly (Fang et al. 2023) counts them.

    `split_by="number"`: bin i holds the events i*(N//T)..(i+1)*(N//T)-1, the last bin also the rest.
    `split_by="time"`: bin i holds the events with i*D <= t - t[0] < (i+1)*D, where D = (t[-1] - t[0]) // T in
    microseconds, the last bin also the rest.

    Args:
      events: the recording.
      steps: the number of bins, T >= 1.
      split_by: bins of equal event number, or of equal time.
      size: height and width of the frames, see `resize_area`; None: the sensor's.

    Returns:
      `[T, H, W, 2]`, channel = polarity, in uint8 if all counts fit, else uint16.

    Raises:
      ValueError: `steps`, `split_by` or `size` is outside its range, or a count exceeds 65,535.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    # One flat index an event, so that a single bincount fills all frames.
    pixel = events.y * events.width + events.x
    index = (_bins(events.t, steps, split_by) * (events.height * events.width) + pixel) * 2 + events.p
    shape = (steps, events.height, events.width, 2)
    counts = np.bincount(index, minlength=int(np.prod(shape))).reshape(shape)
    return narrow(counts if size is None else resize_area(counts, size))


def _bins(t: np.ndarray, steps: int, split_by: SplitBy) -> np.ndarray:
    """Bin of every event, `[N]`."""
    if split_by == "number":
        position, length = np.arange(len(t)), len(t) // steps
    elif split_by == "time":
        position, length = t - t[0], int(t[-1] - t[0]) // steps
    else:
        raise ValueError(f'split_by must be "number" or "time", got {split_by!r}')
    # Fewer events (or microseconds) than bins: all of them are "the rest".
    return np.minimum(position // length, steps - 1) if length else np.full(len(t), steps - 1)


def resize_area(counts: np.ndarray, size: int) -> np.ndarray:
    """Makes frames smaller: each pixel becomes the sum over the area that it covers.

    A pixel on a border is shared in the ratio of the areas, and the sums are rounded to the nearest integer;
    where `size` divides height and width they are plain sums. The arithmetic is exact, so the result does not
    depend on the machine.

    Args:
      counts: integers, `[T, H, W, C]`.
      size: new height and width, 1..min(H, W).

    Returns:
      `[T, size, size, C]`, int64.

    Raises:
      ValueError: `size` is outside its range.
    """
    height, width = counts.shape[1:3]
    if not 1 <= size <= min(height, width):
        raise ValueError(f"size must be in 1..{min(height, width)}, the sensor's, got {size}")
    if (height, width) == (size, size):
        return counts
    rows, columns = _overlaps(height, size), _overlaps(width, size)
    # Whole numbers far below 2^53: float64 is exact here, and its matrix product is fast.
    sums = np.moveaxis(rows @ np.moveaxis(counts.astype(np.float64), 3, 1) @ columns.T, 1, 3)
    whole = size * size
    return (2 * sums.astype(np.int64) + whole) // (2 * whole)


def _overlaps(old: int, new: int) -> np.ndarray:
    """Lengths of the part of old pixel j (`new` long) in new pixel i (`old` long), `[new, old]`."""
    i, j = np.arange(new)[:, None], np.arange(old)
    left, right = np.maximum(i * old, j * new), np.minimum((i + 1) * old, (j + 1) * new)
    return np.maximum(right - left, 0).astype(np.float64)


def narrow(counts: np.ndarray) -> np.ndarray:
    """Stores counts in uint8, or in uint16 where they need it.

    Raises:
      ValueError: a count exceeds 65,535.
    """
    largest = counts.max()
    if largest > np.iinfo(np.uint16).max:
        raise ValueError(f"a pixel counts {largest} events in one step, more than 65,535: use more steps")
    return counts.astype(np.uint8 if largest <= np.iinfo(np.uint8).max else np.uint16)
