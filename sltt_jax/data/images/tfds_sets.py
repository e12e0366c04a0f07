"""Image sets through tensorflow-datasets, without TensorFlow: prepared on first use, then read."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sltt_jax.damage import DamagedFile, check_is_file, reading
from sltt_jax.data.arrays import ArrayData
from sltt_jax.data.cache import cached, remove_rests
from sltt_jax.data.images.decoding import open_image

try:
    import tensorflow_datasets as tfds
    from google.protobuf import json_format

    from sltt_jax.data.images import tfds_builders
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"image sets come through tensorflow-datasets: pip install 'sltt-jax[experiments]' ({error})"
    ) from error


_ANEW = "Delete the folder to have it prepared anew."


@dataclasses.dataclass(frozen=True)
class Records:
    """Random access to the records of one split; it can be pickled, for worker processes.

    Attributes:
      source: of TFDS: dicts with `image`, the bytes of a file, `label`, and what else the set has.
      where: the split, for errors.
      classes: number of classes.

    Raises:
      DamagedFile: a record that is asked for is damaged, lies in a missing file or has a label outside
        0..classes-1.
    """

    source: Sequence[dict[str, Any]]
    where: str
    classes: int

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with reading(f"{self.where}, record {index}", f"a whole record. {_ANEW}"):
            record = self.source[index]
            if not 0 <= record["label"] < self.classes:
                raise ValueError(f"label {record['label']} is outside 0..{self.classes - 1}")
            return record


def image_records(
    name: str, split: str, data_dir: str | Path | None = None, *, download: bool = False
) -> Records:
    """Opens the records of one split with their images still encoded, for `ImageStream`.

    Args and errors are those of `load_images`, and `split` is one that the set has.
    """
    return _records(_prepared(name, data_dir, download), split)


def load_images(name: str, data_dir: str | Path | None = None, *, download: bool = False) -> ArrayData:
    """Loads an image set, uint8 `[N, H, W, C]` and int32 `[N]`, tested on "test" or else "validation".

    The first use prepares mnist, fashion_mnist, cifar10 and cifar100 from their official files (where they
    may lie, `tfds_builders` tells) or a download, and decodes them into `<data_dir>/decoded`, from where
    later uses read them. Any other set of TFDS whose images have one size is read where it is prepared, as
    ArrayRecord. Several processes may do so at once: the first to be ready gives the set, and the work of the
    others is dropped.

    Args:
      name: of TFDS, like "cifar10" or "svhn_cropped:3.1.0".
      data_dir: of TFDS; by default its own, `~/tensorflow_datasets` or `TFDS_DATA_DIR`.
      download: fetch the official files that are not there.

    Raises:
      ValueError: these are not images of one size with class labels; an official file is bad; a prepared set
        is incomplete, damaged or in another format.
      FileNotFoundError: the set is not prepared, and not one that this library prepares.
      ConnectionError: a download failed. TFDS tries it eleven times, over three and a half minutes.
      OSError: the disk is full.
    """
    builder = _builder(name, data_dir)
    features = dict(builder.info.features)
    shape = getattr(features.get("image"), "shape", None)
    classes = getattr(features.get("label"), "num_classes", None)
    if shape is None or None in shape or classes is None or features["image"].np_dtype != np.uint8:
        raise ValueError(
            f"{name}: only images of one size, of uint8 and with class labels, fit into an array; it has "
            f"{builder.info.features}. `sltt_jax.data.images.imagenet` streams images of different sizes."
        )
    builder = _prepared(name, data_dir, download)
    folder, test = Path(builder.data_path), "test" if "test" in builder.info.splits else "validation"

    def decode() -> dict[str, np.ndarray]:
        arrays = {}
        for part, split in (("train", "train"), ("test", test)):
            records = _records(builder, split)
            arrays[f"{part}_x"] = images = np.empty((len(records), *shape), np.uint8)
            arrays[f"{part}_y"] = labels = np.empty(len(records), np.int32)
            for i in range(len(records)):
                record = records[i]
                images[i], labels[i] = _pixels(record["image"], shape, records, i), record["label"]
        return arrays

    key = builder.info.full_name.replace("/", "-")
    files = sorted(folder.glob("*"))
    cache = Path(builder.data_dir_root) / "decoded"
    return cached(cache, key, {"test": test}, folder, files, decode, classes)


def _pixels(image: bytes, shape: tuple[int, int, int], records: Records, index: int) -> np.ndarray:
    with reading(f"{records.where}, record {index}", f"a JPEG or PNG image {shape}. {_ANEW}"):
        opened = open_image(image)
        if opened.size != (shape[1], shape[0]):
            raise ValueError(f"it is {opened.height} x {opened.width}")
        return np.asarray(opened).reshape(shape)


def _builder(name, data_dir) -> Any:
    try:
        return tfds.builder(name, data_dir=data_dir)
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise DamagedFile(f"{data_dir}, {name}: damaged dataset_info.json. {_ANEW} ({error})") from error


def _prepared(name, data_dir, download) -> Any:
    """Builder of a set that is on disk, whole and readable; it is prepared if it is not there."""
    builder = _builder(name, data_dir)
    folder = Path(builder.data_path)
    if not folder.exists():
        _prepare(builder, folder, download)
        return _builder(name, data_dir)  # of what is on disk; the one that prepares cannot be pickled
    builder = _builder(name, data_dir)  # another process may have put it there since
    if not (folder / "dataset_info.json").exists():
        raise DamagedFile(f"{folder}: half prepared, it has no dataset_info.json. {_ANEW}")
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise ValueError(
            f"{folder}: prepared as {builder.info.file_format.value}, which needs TensorFlow. Convert it "
            f"where that is installed: tfds convert_format --dataset_version_dir={folder} "
            f"--out_file_format=array_record --out_dir=NEW_DATA_DIR/{builder.info.full_name}"
        )
    for split in builder.info.splits.values():
        if missing := [path.name for path in split.filepaths if not path.exists()]:
            raise DamagedFile(f"{folder}: half prepared, it has no {', '.join(missing[:3])}. {_ANEW}")
        for path in split.filepaths:
            check_is_file(path)
        size = sum(path.stat().length for path in split.filepaths)
        if split.num_examples > size:
            raise DamagedFile(
                f"{folder}: {split.num_examples} records of {split.name} in {size} bytes. {_ANEW}"
            )
    return builder


def _prepare(builder, folder, download):
    own = tfds_builders.BUILDERS.get(builder.name)
    if own is None or own.VERSION != builder.version:
        raise FileNotFoundError(
            f"{builder.info.full_name} is not in {builder.data_dir_root}. Prepare it where TensorFlow is "
            f"installed: tfds build {builder.name} --file_format=array_record"
        )
    if not download and not Path(builder.data_dir_root).is_dir():
        raise FileNotFoundError(f"{builder.name}: there is no directory {builder.data_dir_root}")
    remove_rests(folder.parent.glob(f"incomplete.*_{folder.name}"))
    preparing = own(data_dir=builder.data_dir_root, file_format="array_record")
    preparing.may_download = download
    try:
        preparing.download_and_prepare()
    except OSError:
        # TFDS writes into a folder of its own and renames that at the end, which fails when another process
        # was first. What this one wrote is deleted by then.
        if not folder.exists():
            raise


def _records(builder, split) -> Records:
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    classes = builder.info.features["label"].num_classes
    return Records(source, f"{builder.data_path}, {split}", classes)
