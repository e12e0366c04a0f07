"""Data of one's own: images and recordings in class folders, and what a function of one's own returns."""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from common.configs import Config
from common.forms import FLAT, Spec
from common.own_module import call, checked_step, sample_of
from common.sources import Source

from sltt_jax import data
from sltt_jax.data import encoders


class Own(NamedTuple):
    """Data of one's own.

    Attributes:
      data: arrays or batches.
      encode: how the network sees a batch.
      per_step: there is a label at each step.
      names: of the classes.
      about: what it is in words, a line each.
    """

    data: data.ArrayData | data.BatchData
    encode: encoders.Encoder
    per_step: bool
    names: tuple[str, ...]
    about: tuple[str, ...]


def open_own(config: Config, source: Source, directory: Path) -> Own:
    """Reads and checks data of one's own.

    Args:
      config: of the run.
      source: what its `data` names.
      directory: of the data sets, where what took long to read is kept.

    Raises:
      ValueError: it is not as it should be; the message names the file.
      OSError: it is not there, or cannot be read.
    """
    if source.kind == "module":
        return _of_module(config, source.path)
    size, share, cache = config.size, config.test_share, directory / "cache"
    if source.kind == "folder":
        from sltt_jax.data.images.folders import load_image_folder  # needs Pillow

        arrays, names = load_image_folder(source.path, size=size, test_share=share, cache=cache)
        pixels = _mean_and_std(arrays.train_x, source.path)
        form = Spec(arrays.train_x.shape[1:], arrays.classes, None, pixels=pixels)
        numbers = (f"{m:.4f} +- {s:.4f}" for m, s in zip(*pixels, strict=True))
        said = f"pixels of 0..1, by channel: {', '.join(numbers)}; the network sees them at 0 +- 1"
    else:
        from sltt_jax.data.events.folders import load_event_folder

        arrays, names = load_event_folder(
            source.path, steps=config.T, size=size, test_share=share, cache=cache
        )
        form = Spec(arrays.train_x.shape[2:], arrays.classes, None, events=True)
        said = _moments("events of a pixel and step", arrays.train_x)
    about = f"data     {source}", *_about(arrays, names), f"inputs   {said}"
    return Own(arrays, form.encoder(config), False, names, about)


def _mean_and_std(x: np.ndarray, folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixels in 0..1, one a channel, of uint8 `[N, H, W, C]`."""
    counts = np.stack([np.bincount(x[..., c].ravel(), minlength=256) for c in range(x.shape[-1])])
    shares, values = counts / counts.sum(-1, keepdims=True), np.arange(256) / 255
    mean = shares @ values
    std = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(-1))
    if not std.all():
        raise ValueError(f"{folder}: in channel {int(np.argmin(std))} all pixels of all images are the same")
    return tuple(map(float, mean)), tuple(map(float, std))


def _moments(what: str, x: np.ndarray) -> str:
    mean, ends = x.mean(dtype=np.float64), f"from {x.min():.4g} to {x.max():.4g}"
    return f"{what}: {mean:.4g} +- {_std(x):.4g}, {ends}, {x.dtype}"


def _std(x: np.ndarray) -> float:
    """Standard deviation, of some samples at a time: `x.std()` would make a copy of all in float64."""
    mean = x.mean(dtype=np.float64)
    parts = (x[i : i + 256].astype(np.float64) for i in range(0, len(x), 256))
    return float(np.sqrt(sum(((part - mean) ** 2).sum() for part in parts) / x.size))


def _about(arrays: data.ArrayData, names: tuple[str, ...]) -> tuple[str, ...]:
    """Says shapes and classes of arrays."""
    x, y, test_y = arrays.train_x, arrays.train_y, arrays.test_y
    shapes = f"samples  {len(x)} for training, {len(arrays.test_x)} for testing, each {list(x.shape[1:])}"
    if isinstance(y, dict):
        share = np.mean(y["weight"] != 0)
        counts = np.bincount(y["y"][y["weight"] != 0], minlength=arrays.classes)
        labels = f"labels   at {100 * share:.1f} % of the steps"
        each = [f"{name} {n / counts.sum():.3f}" for name, n in zip(names, counts, strict=True)]
    else:
        labels = "labels   of samples for training + testing"
        both = (np.bincount(part, minlength=arrays.classes) for part in (y, test_y))
        each = [f"{name} {n} + {m}" for name, n, m in zip(names, *both, strict=True)]
    listed = ", ".join(each if len(each) <= 12 else [*each[:10], "...", each[-1]])
    return shapes, f"{labels}; {arrays.classes} classes: {listed}"


def _of_module(config: Config, path: Path) -> Own:
    """Calls the function of a file, and checks what it returns."""
    if config.encoding != "direct":
        raise ValueError(f"encoding={config.encoding} is for images; {path} has an encoder of its own")
    wanted = data.Wanted(config.T, config.batch_size, config.seed, jax.process_index(), jax.process_count())
    own, encode = call(path, wanted)
    sample = sample_of(own, path)
    per_step = isinstance(sample.train_y, dict)
    if per_step and sample.train_x.shape[1] != config.T:
        raise ValueError(
            f"{path}: there are labels of {sample.train_x.shape[1]} steps, and the run has T={config.T}"
        )
    step = checked_step(encode, sample.train_x[: config.batch_size], config.T, path)
    if config.model in FLAT and len(step) == 3:
        encode = encoders.flat(encode)
    names = tuple(map(str, range(own.classes)))
    if isinstance(own, data.BatchData):
        whole = (f"samples  in {own.train.steps_per_epoch} batches an epoch; {own.classes} classes",)
    else:
        whole = _about(own, names)
    said = f"{_moments('numbers', sample.train_x)}; the network sees {list(step)} at each step"
    return Own(own, encode, per_step, names, (f"data     {path}", *whole, f"inputs   {said}"))
