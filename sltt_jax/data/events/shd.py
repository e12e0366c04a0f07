"""Heidelberg spiking data sets (Cramer et al. 2020): spoken words as spikes of 700 cochlear channels."""

from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from sltt_jax.damage import check_is_file, reading
from sltt_jax.data.arrays import ArrayData
from sltt_jax.data.cache import cached
from sltt_jax.data.events.binning import narrow
from sltt_jax.data.events.conversion import as_arrays
from sltt_jax.data.events.foreign import decode

UNITS = 700
CLASSES = {"shd": 20, "ssc": 35}


def load_shd(
    folder: str | Path,
    name: Literal["shd", "ssc"] = "shd",
    *,
    steps: int = 100,
    channels: int = UNITS,
    duration: float = 1.4,
    cache: str | Path | None = None,
) -> ArrayData:
    """Loads Spiking Heidelberg Digits or Speech Commands: `<folder>/<name>_train.h5` and `<name>_test.h5`.

    Args:
      folder: where the unpacked files are; SSC's validation file is not read.
      name: "shd" (20 classes) or "ssc" (35).
      steps: bins of equal time from 0 to `duration`.
      channels: neighbouring units are summed to so many channels; a divisor of 700.
      duration: seconds, more than the last spike of all recordings.
      cache: the folder to keep the result in; None: it is made anew each time.

    Returns:
      Spike counts `[N, T, channels]`, uint8 or uint16.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is damaged or reads more of the machine than itself, a recording lasts longer than
        `duration`, or an option is outside its range.
      ModuleNotFoundError: h5py is not installed.
    """
    if name not in CLASSES:
        raise ValueError(f'name must be "shd" or "ssc", got {name!r}')
    if steps < 1 or channels < 1 or UNITS % channels or not duration > 0:
        raise ValueError(
            f"steps must be at least 1, channels a divisor of {UNITS} and duration positive, "
            f"got {steps}, {channels} and {duration}"
        )
    folder = Path(folder)
    paths = [folder / f"{name}_{split}.h5" for split in ("train", "test")]

    def build() -> dict[str, np.ndarray]:
        return as_arrays(*(_read(path, steps, channels, duration, CLASSES[name]) for path in paths))

    options = {"steps": steps, "channels": channels, "duration": duration}
    return cached(cache, name, options, folder, paths, build, CLASSES[name])


def _read(
    path: Path, steps: int, channels: int, duration: float, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Counts `[N, T, channels]` and labels `[N]` of a file with spikes/times, spikes/units and labels."""
    with reading(path, "a file of spikes/times, spikes/units and labels"):
        check_is_file(path)
        file = decode("h5py", path)
        times, units = (np.split(file[name], file[f"{name}_ends"])[:-1] for name in ("times", "units"))
        labels = file["labels"]
        if not 0 < len(labels) == len(times) == len(units):
            raise ValueError(f"{len(times)} times, {len(units)} units and {len(labels)} labels")
        wrong = np.flatnonzero((labels < 0) | (labels >= classes))
        if len(wrong):
            raise ValueError(f"label {labels[wrong[0]]} of recording {wrong[0]} is outside 0..{classes - 1}")
    recordings = tqdm(zip(times, units, strict=True), desc=path.stem, total=len(labels), disable=None)
    xs = []
    for i, (t, unit) in enumerate(recordings):
        with reading(f"{path}, recording {i}", "spikes"):
            xs.append(_counts(t, unit, steps, channels, duration))
    return np.stack(xs), labels.astype(np.int32)


def _counts(t: np.ndarray, unit: np.ndarray, steps: int, channels: int, duration: float) -> np.ndarray:
    """Spikes `[T, channels]` of a recording with times in seconds (float16 in the files) and units 0..699."""
    if not 0 < len(t) == len(unit):
        raise ValueError(f"{len(t)} times and {len(unit)} units")
    if not (t.min() >= 0 and t.max() < duration):
        raise ValueError(f"spikes from {t.min()} to {t.max()} s, expected 0 <= t < {duration}")
    if unit.min() < 0 or unit.max() >= UNITS:
        raise ValueError(f"units from {unit.min()} to {unit.max()}, expected 0..{UNITS - 1}")
    step = (t.astype(np.float64) * (steps / duration)).astype(np.int64)
    channel = unit.astype(np.int64) // (UNITS // channels)
    # A product just below `duration` may be rounded up to it.
    counts = np.bincount(np.minimum(step, steps - 1) * channels + channel, minlength=steps * channels)
    return narrow(counts.reshape(steps, channels))
