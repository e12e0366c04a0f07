"""Photographs made up: JPEG files as large as those of ImageNet, stored as TFDS stores them."""

import io
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from sltt_jax.data.images.tfds_sets import Records, image_records

WIDTH, HEIGHT = 500, 375  # the most frequent size in ImageNet
CLASSES = 1000


def photograph(rng: np.random.Generator) -> bytes:
    """A JPEG of about 110 kB, the mean of ImageNet.

    Its noise is of five scales, from large blotches to single pixels: to unpack it takes as many coefficients
    as a real photograph has.
    """
    total = np.zeros((HEIGHT, WIDTH, 3))
    for cells, contrast in ((4, 40), (16, 25), (64, 15), (256, 14), (WIDTH, 14)):
        noise = rng.integers(0, 256, (cells * HEIGHT // WIDTH, cells, 3), np.uint8)
        layer = Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        total += contrast / 64 * (np.asarray(layer) - 128.0)
    out = io.BytesIO()
    Image.fromarray(np.clip(128 + total, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
    return out.getvalue()


class Photographs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A training split of made-up photographs with labels in 0..999."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, count: int, seed: int, **kwargs):
        super().__init__(**kwargs)
        self._count, self._rng = count, np.random.default_rng(seed)

    def _info(self):
        image, label = (
            tfds.features.Image(encoding_format="jpeg"),
            tfds.features.ClassLabel(num_classes=CLASSES),
        )
        features = tfds.features.FeaturesDict({"image": image, "label": label})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(self._count):
            yield i, {"image": photograph(self._rng), "label": int(self._rng.integers(CLASSES))}


def photographs(folder: Path, count: int, *, seed: int) -> Records:
    """`count` photographs, encoded, as ImageNet's training split; made in `folder` unless they are there."""
    if not folder.exists():
        builder = Photographs(count=count, seed=seed, data_dir=folder, file_format="array_record")
        builder.download_and_prepare()
    return image_records("photographs", "train", folder)
