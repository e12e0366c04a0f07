"""Photographs that do not fit in memory: decoded, cropped and resized on the host by `grain`, batch by batch.

With worker processes, a script needs the guard `if __name__ == "__main__":`, since they import it.
"""

import atexit
import dataclasses
import math
import os
import weakref
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, Protocol

import grain
import numpy as np
from absl import flags
from PIL import Image

from sltt_jax.damage import reading
from sltt_jax.data.images.decoding import SIZE, open_image, resize_center_crop
from sltt_jax.data.pipeline import Batch, check_position


class EncodedImages(Protocol):
    """Random access to dicts with `image`, the bytes of a file, and `label`: `tfds_sets.image_records`."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def random_resized_crop(image: Image.Image, rng: np.random.Generator, size: int = SIZE) -> Image.Image:
    """Cuts a random part out, of 8 % to 100 % of the area and 3:4 to 4:3 (as torchvision): `size` x `size`.

    The part is the largest in the middle if ten draws do not fit into the image.
    """
    width, height = image.size
    shortest, longest = 3 / 4, 4 / 3  # width / height
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(shortest), math.log(longest)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            break
    else:
        w, h = min(width, round(height * longest)), min(height, round(width / shortest))
        left, top = (width - w) // 2, (height - h) // 2
    part = image.crop((left, top, left + w, top + h))
    return part.resize((size, size), Image.Resampling.BILINEAR)


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some of the records of a set, in the order of their numbers in `chosen`."""

    records: EncodedImages
    chosen: np.ndarray

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.records[int(self.chosen[index])]


class ImageStream:
    """Training batches of a set on disk (`pipeline.Batches`): a random resized crop and flip of every image.

    A batch is `{"x": uint8 [B / processes, 224, 224, 3], "y": int32 [B / processes]}`. Over all processes
    together it is the same for any number of processes and workers. What does not fill a batch is left out of
    an epoch.

    Args:
      records: the training split.
      batch_size: B, samples of one batch over all processes, 1..N.
      seed: of the order of every epoch, and of crops and flips; >= 0.
      process, processes: the part of this process, 0..processes-1; `processes` must divide `batch_size`.
      workers: worker processes, which start at the first batch; 0 uses threads.

    Raises:
      ValueError: a number is outside its range; when batches are taken, an image is damaged.
    """

    def __init__(
        self,
        records: EncodedImages,
        batch_size: int,
        *,
        seed: int,
        process: int = 0,
        processes: int = 1,
        workers: int = 0,
    ):
        if not 1 <= batch_size <= len(records):
            raise ValueError(
                f"batch_size must be in 1..{len(records)}, the number of images, got {batch_size}"
            )
        _check_process(batch_size, process, processes)
        self.steps_per_epoch = len(records) // batch_size
        samples = grain.MapDataset.source(records).seed(seed).shuffle().random_map(_augmented)
        part = samples[process : self.steps_per_epoch * batch_size : processes]
        self._batches, self._workers = part.batch(batch_size // processes).repeat(), workers
        self._of = {"samples": len(records), "batch_size": batch_size, "seed": seed}
        self._next, self._iterator = 0, None

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._iterator is None:
            self._iterator = _iterate(self._batches[self._next :], self._workers)
        batch = next(self._iterator)
        self._next += 1
        return Batch(x=batch["x"], y=batch["y"])

    def get_state(self) -> dict[str, int]:
        return {"batch": self._next, **self._of}

    def set_state(self, state: dict[str, int]) -> None:
        check_position(state, self._of)
        self._next, self._iterator = state["batch"], None


def evaluation_batches(
    records: EncodedImages, batch_size: int, *, process: int = 0, processes: int = 1, workers: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Returns all images in order, once each over all processes, resized and cropped in the middle.

    Every process has the same number of batches, like those of `ImageStream` and with a `mask`
    `[B / processes]`, float32, that is 0 for what fills up the last.

    Args and errors are those of `ImageStream`.
    """
    _check_process(batch_size, process, processes)
    filled = -(-len(records) // batch_size) * batch_size
    samples = grain.MapDataset.range(filled).map(partial(_evaluated, records))
    return _iterate(samples[process::processes].batch(batch_size // processes), workers)


def _check_process(batch_size, process, processes):
    if not 0 <= process < processes or batch_size < 1 or batch_size % processes:
        raise ValueError(f"process {process} of {processes} cannot have its part of {batch_size} images")


def _iterate(batches: grain.MapDataset, workers: int) -> Iterator[dict[str, np.ndarray]]:
    # An element is a whole batch: grain's default of 500 elements ahead would fill the memory.
    threads = 0 if workers else min(os.cpu_count() or 1, 16)
    dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads a flag, and nothing here has a main of absl
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
        dataset = dataset.mp_prefetch(options)
    # From workers arrays come in shared memory, of which there is little: it is given back at once.
    copy = np.array if workers else np.asarray
    stream = ({name: copy(a) for name, a in batch.items()} for batch in dataset)
    _OPEN.add(stream)
    return stream


# Left to the end of the interpreter, grain stops its workers and threads when half of its modules are gone.
_OPEN: weakref.WeakSet[Generator] = weakref.WeakSet()


@atexit.register
def _close():
    for generator in list(_OPEN):
        generator.close()


def _augmented(record: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    def transform(image):
        part = random_resized_crop(image, rng)
        return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else part

    return _sample(record, transform)


def _evaluated(records: EncodedImages, index: int) -> dict[str, Any]:
    if index >= len(records):
        blank = {"x": np.zeros((SIZE, SIZE, 3), np.uint8), "y": np.int32(0)}
        return blank | {"mask": np.float32(0)}
    return _sample(records[index], resize_center_crop) | {"mask": np.float32(1)}


def _sample(record: dict[str, Any], transform: Callable[[Image.Image], Image.Image]) -> dict[str, Any]:
    name = record.get("file_name", b"of a record").decode(errors="replace")
    with reading(f"image {name}", "a whole JPEG or PNG"):
        image = open_image(record["image"]).convert("RGB")
    return {"x": np.asarray(transform(image)), "y": np.int32(record["label"])}
