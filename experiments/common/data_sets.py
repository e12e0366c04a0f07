"""The data sets of the experiments by name: what they look like, where they are, how a network sees them."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from common.configs import RECURRENT, Config
from sltt_jax import data
from sltt_jax.data import encoders
from sltt_jax.data.augment import cifar, random_crop, random_flip, random_roll
from sltt_jax.data.events.cameras import load_cifar10_dvs, load_dvs_gesture, load_nmnist
from sltt_jax.data.events.qtdb import load_qtdb
from sltt_jax.data.events.shd import load_shd
from sltt_jax.data.events.spoken_digits import load_fsdd

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


def _digits(directory: Path, config: Config, download: bool) -> data.ArrayData:
    del directory, config, download  # they come with scikit-learn
    return data.load_digits()


def _images(name: str) -> Loader:
    def load(directory: Path, config: Config, download: bool) -> data.ArrayData:
        del config
        from sltt_jax.data.images.tfds_sets import load_images  # tensorflow-datasets takes a second to import

        return load_images(name, directory, download=download)

    return load


def _events(load_frames: Callable[..., data.ArrayData], folder: str) -> Loader:
    def load(directory: Path, config: Config, download: bool) -> data.ArrayData:
        del download  # none of these can be fetched
        return load_frames(directory / folder, steps=config.T, cache=directory / "cache")

    return load


def _cifar10_dvs(directory: Path, config: Config, download: bool) -> data.ArrayData:
    del download
    return load_cifar10_dvs(
        directory / "cifar10_dvs",
        steps=config.T,
        preprocessing=config.preprocessing,
        cache=directory / "cache",
    )


def _qtdb(directory: Path, config: Config, download: bool) -> data.ArrayData:
    del download
    return load_qtdb(directory / "qtdb", steps=config.T)


CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)  # mean and std, as in the paper's code
CIFAR100 = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY = (0.0,), (1.0,)

WORKERS = 4  # processes that decode ImageNet, as many as the authors use

SPECS = {
    "digits": Spec((8, 8, 1), 10, _digits),
    "mnist": Spec(
        (28, 28, 1), 10, _images("mnist"), pixels=GREY, augmentation=partial(random_crop, padding=2)
    ),
    "psmnist": Spec((28, 28, 1), 10, _images("mnist"), pixels=GREY, sequence=True),
    "fashion_mnist": Spec((28, 28, 1), 10, _images("fashion_mnist"), pixels=GREY, augmentation=random_flip),
    "cifar10": Spec((32, 32, 3), 10, _images("cifar10"), pixels=CIFAR10, augmentation=cifar),
    "cifar100": Spec((32, 32, 3), 100, _images("cifar100"), pixels=CIFAR100, augmentation=cifar),
    "imagenet": Spec((224, 224, 3), 1000, None, pixels=IMAGENET),
    "nmnist": Spec(
        (34, 34, 2),
        10,
        _events(load_nmnist, "nmnist"),
        events=True,
        augmentation=partial(random_roll, pixels=2),
    ),
    "dvs_cifar10": Spec((48, 48, 2), 10, _cifar10_dvs, events=True),
    "dvs_gesture": Spec((128, 128, 2), 11, _events(load_dvs_gesture, "dvs_gesture"), events=True),
    "fsdd": Spec((64,), 10, _events(load_fsdd, "fsdd"), events=True),
    "shd": Spec((700,), 20, _events(load_shd, "shd"), events=True),
    "ssc": Spec((700,), 35, _events(partial(load_shd, name="ssc"), "ssc"), events=True),
    "qtdb": Spec((4,), 6, _qtdb, events=True, per_step=True),
}


class OpenData(NamedTuple):
    """The batches of a run; with several processes each has its part of every batch.

    Attributes:
      encode: how the network sees a batch.
      encode_target: how the rule sees its labels.
      train: training batches.
      held_out: "test" and, if there is one, "validation": returns the batches once through, with masks.
      batch: a batch of the training data over all processes, for shapes and types.
    """

    encode: encoders.Encoder
    encode_target: encoders.TargetEncoder
    train: data.Batches
    held_out: Mapping[str, Callable[[], Iterable[dict]]]
    batch: data.Batch


def spec(config: Config) -> Spec:
    """The data set of a configuration.

    Raises:
      ValueError: there is none of that name.
    """
    if config.data not in SPECS:
        raise ValueError(f"unknown data set {config.data!r}; there are {', '.join(SPECS)}")
    return SPECS[config.data]


def open_data(config: Config, directory: Path, *, made: bool, download: bool = False) -> OpenData:
    """Opens the data of a configuration, or makes some of the same form.

    Raises:
      ValueError: an unknown data set, fewer samples than one batch, a damaged file, or a number of samples of
        a set that is streamed.
      OSError: a file is missing (and not to be downloaded, or cannot be), or cannot be read.
    """
    form = spec(config)
    encode = form.encoder(config), encoders.per_step if form.per_step else lambda y: y
    mine = {"process": jax.process_index(), "processes": jax.process_count()}
    n_train, n_test, B = config.train_samples, config.test_samples, config.batch_size
    if not (made or form.load):
        if n_train or n_test:
            raise ValueError("ImageNet is streamed whole: no --train-samples, --test-samples or --reduced")
        return OpenData(*encode, *_imagenet(config, directory, mine))
    if made and config.preprocessing == "paper":
        raise ValueError("preprocessing=paper is of real recordings; made-up frames are counts")
    if made or not form.load:
        arrays = form.make(config.T, train=n_train or 512, test=n_test or 256, seed=config.seed)
    else:
        arrays = form.load(directory, config, download)
    of = lambda chosen, *arrays: jax.tree.map(lambda a: a[chosen], arrays)
    x, y = of(slice(n_train), arrays.train_x, arrays.train_y)
    parts = {"test": of(slice(n_test), arrays.test_x, arrays.test_y)}
    kept, held = split_indices(len(x), config)
    if len(held):
        parts = {"validation": of(held, x, y), **parts}
        x, y = of(kept, x, y)
    train = data.ArrayBatches(x, y, B, seed=config.seed, **mine)
    held_out = {name: partial(data.padded_batches, *part, B, **mine) for name, part in parts.items()}
    return OpenData(*encode, train, held_out, data.Batch(x=x[:B], y=of(slice(B), y)[0]))


def split_indices(n: int, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Splits the numbers 0..n-1 in two parts, both in order; the second, for validation, is a random one.

    Raises:
      ValueError: it would be empty though there is to be one, or what is left would not fill a batch.
    """
    order = np.random.default_rng([config.seed, 1]).permutation(n)
    held = round(config.validation * n)
    if config.validation and not 1 <= held <= n - config.batch_size:
        raise ValueError(
            f"validation {config.validation} keeps {held} of {n} samples and leaves {n - held} to train on; "
            f"at least one must be kept, and a batch of {config.batch_size} be left"
        )
    return np.sort(order[held:]), np.sort(order[:held])


def _imagenet(config: Config, directory: Path, mine: dict):
    from sltt_jax.data.images.imagenet import SIZE, ImageStream, Subset, evaluation_batches
    from sltt_jax.data.images.tfds_sets import image_records

    train, test = (image_records("imagenet2012", split, directory) for split in ("train", "validation"))
    parts, B = {"test": test}, config.batch_size
    kept, held = split_indices(len(train), config)
    if len(held):
        parts = {"validation": Subset(train, held), **parts}
        train = Subset(train, kept)
    batch = data.Batch(x=np.zeros((B, SIZE, SIZE, 3), np.uint8), y=np.zeros(B, np.int32))
    return (
        ImageStream(train, B, seed=config.seed, workers=WORKERS, **mine),
        {name: partial(evaluation_batches, part, B, workers=WORKERS, **mine) for name, part in parts.items()},
        batch,
    )
