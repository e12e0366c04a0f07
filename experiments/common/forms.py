"""Forms of data sets: what samples look like, how a network sees them, and made-up ones."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common.configs import RECURRENT, Config

from sltt_jax import data
from sltt_jax.data import encoders

FLAT = "mlp", RECURRENT  # networks of inputs [T, B, features]

Loader = Callable[[Path, Config, bool], data.ArrayData]


def _population(T: int, *, high: float, augmentation: encoders.Augmentation | None) -> encoders.Encoder:
    return encoders.population(encoders.latency(T, augmentation=augmentation), 4, high=high)


# Encodings of images as spikes: `make(T, *, high, augmentation) -> Encoder` of values in 0..high.
ENCODERS = {"rate": encoders.rate, "latency": encoders.latency, "population": _population}


@dataclasses.dataclass(frozen=True)
class Spec:
    """A data set.

    Attributes:
      shape: of one step's input, `[H, W, C]` or `[features]`.
      classes: number of classes.
      load: `(directory, config, download) -> ArrayData`; None for what is streamed.
      events: samples are event counts `[T, *shape]`, one frame a step; otherwise images.
      sequence: images are read some pixels a step, all of them in T steps, in an order that was drawn once.
      per_step: there is a label at each step, and not one a sample.
      pixels: mean and standard deviation of pixels in 0..1, one a channel; None where images come normalised.
      augmentation: of the training samples.
    """

    shape: tuple[int, ...]
    classes: int
    load: Loader | None
    events: bool = False
    sequence: bool = False
    per_step: bool = False
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    augmentation: encoders.Augmentation | None = None

    def encoder(self, config: Config) -> encoders.Encoder:
        """Makes a batch the network's input of T steps.

        Raises:
          ValueError: an encoding of images for what is seen otherwise.
        """
        if config.encoding != "direct":
            if self.events or self.sequence:
                raise ValueError(f"encoding={config.encoding} is for images, got {config.data!r}")
            make, high = ENCODERS[config.encoding], 255.0 if self.pixels else 1.0
            encode = make(config.T, high=high, augmentation=self.augmentation)
        elif self.events:
            scale = 1 / 255 if config.preprocessing == "paper" else None
            encode = encoders.event_frames(augmentation=self.augmentation, scale=scale)
        elif self.sequence:
            return encoders.pixel_sequence(config.T, math.prod(self.shape))
        else:
            mean, std = self.pixels or (None, None)
            encode = encoders.direct(config.T, mean=mean, std=std, augmentation=self.augmentation)
        return encoders.flat(encode) if config.model in FLAT and len(self.shape) == 3 else encode

    def make(self, T: int, *, train: int, test: int, seed: int) -> data.ArrayData:
        """Makes up samples of this form, for trying things out without the data.

        Every class has a random picture (or film) of its own, seen through as much noise. Both are coarse, as
        real images are: a network's first average would leave nothing of white noise.
        """
        rng = np.random.default_rng(seed)
        coarse = [-(-n // 8) for n in self.shape[:-1]] + [self.shape[-1]]
        draw = lambda n: rng.normal(size=(n, *([T] if self.events else []), *coarse)).astype(np.float32)
        pictures = draw(self.classes)

        def split(n):
            y = rng.integers(0, self.classes, n).astype(np.int32)
            x = pictures[y] + draw(n)
            if len(self.shape) == 3:
                height, width, _ = self.shape
                x = x.repeat(8, -3).repeat(8, -2)[..., :height, :width, :]
            if self.per_step:  # every second half of a recording is of the next class
                y = (y[:, None] + (np.arange(T) >= T / 2)) % self.classes
                return x, {"y": y.astype(np.int32), "weight": np.ones(y.shape, np.float32)}
            if self.events:
                return np.clip(np.floor(np.abs(x)), 0, 255).astype(np.uint8), y
            return np.clip(128 + 40 * x, 0, 255).astype(np.uint8) if self.pixels else x, y

        return data.ArrayData(*split(train), *split(test), classes=self.classes)
