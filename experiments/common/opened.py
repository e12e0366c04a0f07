"""The batches of a run, from a data set by name or from data of one's own."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from common.configs import Config
from common.data_sets import WORKERS, spec
from common.identity import identity_of
from common.own_data import open_own
from common.sources import Source, source_of

from sltt_jax import data
from sltt_jax.data import encoders


class OpenData(NamedTuple):
    """The batches of a run; with several processes each has its part of every batch.

    Attributes:
      encode: how the network sees a batch.
      encode_target: how the rule sees its labels.
      train: training batches.
      held_out: "test" and, if there is one, "validation": returns the batches once through, with masks.
      batch: a batch of the training data over all processes, for shapes and types.
      classes: number of classes.
      about: of data of one's own, what it is in words, a line each.
      identity: of data of one's own, what tells it apart from other data, see identity.py.
    """

    encode: encoders.Encoder
    encode_target: encoders.TargetEncoder
    train: data.Batches
    held_out: Mapping[str, Callable[[], Iterable[dict]]]
    batch: data.Batch
    classes: int
    about: tuple[str, ...] = ()
    identity: Mapping[str, Any] = MappingProxyType({})


def open_data(config: Config, directory: Path, *, made: bool, download: bool = False) -> OpenData:
    """Opens the data of a configuration, or makes some of the same form.

    Raises:
      ValueError: an unknown data set, fewer samples than one batch, a damaged file, or a number of samples of
        a set that is streamed.
      OSError: a file is missing (and not to be downloaded, or cannot be), or cannot be read.
    """
    if (source := source_of(config.data)) is not None:
        if made:
            raise ValueError(f"made is for data sets by name, got {source}")
        return _open_own(config, source, directory)
    form = spec(config)
    how: Any = {"encode": form.encoder(config), "encode_target": _target_encoder(form.per_step)}
    n_train, n_test = config.train_samples, config.test_samples
    if not (made or form.load):
        if n_train or n_test:
            raise ValueError("ImageNet is streamed whole: no --train-samples, --test-samples or --reduced")
        return OpenData(**how, **_imagenet(config, directory, _mine()), classes=form.classes)
    if made and config.preprocessing == "paper":
        raise ValueError("preprocessing=paper is of real recordings; made-up frames are counts")
    if made or not form.load:
        arrays = form.make(config.T, train=n_train or 512, test=n_test or 256, seed=config.seed)
    else:
        arrays = form.load(directory, config, download)
    return OpenData(**how, **_batches(arrays, config), classes=form.classes)


def _target_encoder(per_step: bool) -> encoders.TargetEncoder:
    return encoders.per_step if per_step else lambda y: y


def _mine() -> dict[str, int]:
    return {"process": jax.process_index(), "processes": jax.process_count()}


def _batches(arrays: data.ArrayData, config: Config) -> dict[str, Any]:
    """Training batches, those that are held out, and one batch, of data in memory."""
    of = lambda chosen, *arrays: jax.tree.map(lambda a: a[chosen], arrays)
    B, mine = config.batch_size, _mine()
    x, y = of(slice(config.train_samples), arrays.train_x, arrays.train_y)
    parts = {"test": of(slice(config.test_samples), arrays.test_x, arrays.test_y)}
    kept, held = split_indices(len(x), config)
    if len(held):
        parts = {"validation": of(held, x, y), **parts}
        x, y = of(kept, x, y)
    train = data.ArrayBatches(x, y, B, seed=config.seed, **mine)
    held_out = {name: partial(data.padded_batches, *part, B, **mine) for name, part in parts.items()}
    batch = data.Batch(x=x[:B], y=of(slice(B), y)[0])
    return {"train": train, "held_out": held_out, "batch": batch}


def _open_own(config: Config, source: Source, directory: Path) -> OpenData:
    own = open_own(config, source, directory)
    how: Any = {"encode": own.encode, "encode_target": _target_encoder(own.per_step)}
    how |= {"classes": own.data.classes, "about": own.about}
    how["identity"] = identity_of(own.data, own.names, config.T)
    if isinstance(own.data, data.ArrayData):
        return OpenData(**how, **_batches(own.data, config))
    if config.train_samples or config.test_samples or config.validation:
        raise ValueError(
            f"{source} has batches of its own: no --train-samples, --test-samples, --validation or --reduced"
        )
    whole: Any = jax.tree.map(lambda a: np.concatenate([a] * jax.process_count()), own.data.first_batch())
    if len(whole["x"]) != config.batch_size:
        raise ValueError(
            f"{source}: batches over all processes must have batch_size={config.batch_size} samples, got "
            f"{len(whole['x'])}"
        )
    held_out = {"test": own.data.test}
    return OpenData(**how, train=own.data.train, held_out=held_out, batch=whole)


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


def _imagenet(config: Config, directory: Path, mine: dict) -> dict[str, Any]:
    from sltt_jax.data.images.imagenet import SIZE, ImageStream, Subset, evaluation_batches
    from sltt_jax.data.images.tfds_sets import image_records

    train, test = (image_records("imagenet2012", split, directory) for split in ("train", "validation"))
    parts, B = {"test": test}, config.batch_size
    kept, held = split_indices(len(train), config)
    if len(held):
        parts = {"validation": Subset(train, held), **parts}
        train = Subset(train, kept)
    batch = data.Batch(x=np.zeros((B, SIZE, SIZE, 3), np.uint8), y=np.zeros(B, np.int32))
    of = lambda part: partial(evaluation_batches, part, B, workers=WORKERS, **mine)
    return {
        "train": ImageStream(train, B, seed=config.seed, workers=WORKERS, **mine),
        "held_out": {name: of(part) for name, part in parts.items()},
        "batch": batch,
    }
