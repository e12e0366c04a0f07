"""Spoken digits as spikes: a filter bank, and an event whenever a band's energy crosses a level."""

import io
import re
import wave
from pathlib import Path

import numpy as np

from sltt_jax.damage import check_is_file, reading
from sltt_jax.data.arrays import ArrayData
from sltt_jax.data.events.binning import Events, frames
from sltt_jax.data.events.conversion import RecordingFile, load_frames

RATE = 8000
WINDOW, HOP, FOURIER = 200, 80, 256  # 25 ms, 10 ms, and the window padded to a power of two
LOWEST = 100.0  # Hz; below lies hum
RANGE = 40.0  # dB below the loudest moment; what is softer is silence


def load_fsdd(
    folder: str | Path,
    *,
    steps: int = 20,
    bands: int = 32,
    level: float = 4.0,
    cache: str | Path | None = None,
) -> ArrayData:
    """Loads the Free Spoken Digit Dataset (2018): `<folder>/recordings/<digit>_<speaker>_<index>.wav`.

    Args:
      folder: the repository of the data set. Index 0..4 is for testing, the rest for training, as it says.
      steps: bins of equal time between the first and the last event.
      bands, level: see `level_crossings`.
      cache: the folder to keep the result in; None: it is made anew each time.

    Returns:
      Event counts `[N, T, 2 * bands]`, uint8 or uint16: falls of band b at 2 b, rises at 2 b + 1.

    Raises:
      FileNotFoundError: there are no recordings.
      ValueError: a file is damaged or misnamed, or an option is outside its range.
    """
    folder = Path(folder)
    splits: tuple[list[RecordingFile], list[RecordingFile]] = [], []
    for path in sorted((folder / "recordings").glob("*.wav")):
        name = re.fullmatch(r"(\d)_\w+_(\d+)", path.stem)
        if not name:
            raise ValueError(f"{path}: not named <digit>_<speaker>_<index>.wav")
        splits[int(name[2]) < 5].append(RecordingFile(path, int(name[1])))
    if not all(splits):
        raise FileNotFoundError(f"{folder / 'recordings'}: needs .wav files of index 0..4 and of others")
    return load_frames(
        "fsdd",
        folder,
        splits,
        read=lambda source: [(read_sound(source.path, bands, level), source.label)],
        frame=lambda events: frames(events, steps, split_by="time").reshape(steps, 2 * bands),
        options={"steps": steps, "bands": bands, "level": level},
        classes=10,
        cache=cache,
    )


def read_wav(path: str | Path) -> np.ndarray:
    """Reads the samples of a recording of one channel, 16 bits, 8 kHz: `[N]`, -1..1, float64.

    Raises:
      DamagedFile: it is no such file, or truncated.
    """
    check_is_file(path)
    data = Path(path).read_bytes()
    with (
        reading(path, f"a WAV file of one channel, 16 bits and {RATE} Hz"),
        wave.open(io.BytesIO(data)) as file,
    ):
        form = (file.getnchannels(), 8 * file.getsampwidth(), file.getframerate())
        if form != (1, 16, RATE):
            raise ValueError(f"(channels, bits, rate) are {form}, expected (1, 16, {RATE})")
        number = file.getnframes()
        samples = file.readframes(number)
        if not number or len(samples) != 2 * number:
            raise ValueError(f"truncated: {len(samples)} bytes for {number} samples of 2")
        return np.frombuffer(samples, "<i2") / 2**15


def filter_bank(samples: np.ndarray, bands: int) -> np.ndarray:
    """Energy in bands of equal width on the mel scale, in dB above silence.

    Args:
      samples: `[N]`, at 8 kHz.
      bands: number of triangular, overlapping bands from 100 Hz to 4 kHz.

    Returns:
      `[M, bands]`, 0..`RANGE`, float64: windows of 25 ms, one every 10 ms.

    Raises:
      ValueError: there are none, or so many bands that one has no frequency in it.
    """
    if bands < 1:
        raise ValueError(f"bands must be at least 1, got {bands}")
    mel = lambda hertz: 2595 * np.log10(1 + hertz / 700)
    edges = 700 * (10 ** (np.linspace(mel(LOWEST), mel(RATE / 2), bands + 2) / 2595) - 1)
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    hertz = np.fft.rfftfreq(FOURIER, 1 / RATE)
    weights = np.maximum(np.minimum((hertz - low) / (middle - low), (high - hertz) / (high - middle)), 0)
    if not weights.any(axis=1).all():
        raise ValueError(
            f"{bands} bands are too many: a window of {FOURIER} samples has no frequency for one"
        )
    padded = np.pad(samples, (0, max(0, WINDOW - len(samples))))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * np.hanning(WINDOW)
    energy = np.abs(np.fft.rfft(windows, FOURIER)) ** 2 @ weights.T
    if not energy.any():
        return energy
    decibel = 10 * np.log10(np.maximum(energy, np.finfo(np.float64).tiny))
    return np.maximum(decibel - decibel.max() + RANGE, 0)


def level_crossings(signal: np.ndarray, level: float) -> np.ndarray:
    """Samples by send-on-delta (Miskowicz 2006): by how many levels each value differs from the last sent.

        n[m] = trunc((s[m] - r[m-1]) / level)        r[m] = r[m-1] + level n[m]        r[-1] = 0

    Args:
      signal: `[M, bands]`.
      level: distance of the levels, > 0.

    Returns:
      `[M, bands]`, int64: n > 0 events upwards, or -n downwards.

    Raises:
      ValueError: `level` is not positive.
    """
    if not level > 0:
        raise ValueError(f"level must be positive, got {level}")
    sent, crossings = np.zeros(signal.shape[1]), np.zeros(signal.shape, np.int64)
    for m, value in enumerate(signal):
        crossings[m] = np.trunc((value - sent) / level)
        sent += level * crossings[m]
    return crossings


def read_sound(path: str | Path, bands: int = 32, level: float = 4.0) -> Events:
    """Reads the level crossings of a recording, as events of a sensor of one row of `bands` pixels.

    Args:
      path: of a WAV file, see `read_wav`.
      bands, level: see `level_crossings`.

    Raises:
      DamagedFile: it is no such file, truncated, or silent.
    """
    crossings = level_crossings(filter_bank(read_wav(path), bands), level)
    m, band = np.nonzero(crossings)
    number = crossings[m, band]
    t, x, p = (
        np.repeat(a, np.abs(number)) for a in (m * HOP * (10**6 // RATE), band, (number > 0).astype(int))
    )
    with reading(path, "a recording with sound"):
        return Events(t, x, np.zeros_like(x), p, height=1, width=bands)
