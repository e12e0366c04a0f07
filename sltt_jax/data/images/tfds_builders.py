"""Canonical TFDS image sets, prepared without TensorFlow.

TFDS reads prepared sets without TensorFlow, but the generators of these five call `tf.io.gfile`. Each builder
here is the canonical one with its generators replaced: same name, version, features and keys, so that
`tfds.data_source(name, data_dir=...)` reads the result like any other.

Official files lie in `<data_dir>/<name>` or `<data_dir>/downloads/manual/<name>`, under their published
names; what is missing there is downloaded, and checked, by TFDS's download manager.
"""

import gzip
import io
import math
import os
import re
import struct
import tarfile
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder

from sltt_jax.damage import DamagedFile, check_is_file, reading
from sltt_jax.data.images.decoding import open_image

Examples = Iterator[tuple[int | str, dict[str, Any]]]

# Images of every split. A file that has fewer was cut off.
PUBLISHED = {
    "mnist": {"train": 60_000, "test": 10_000},
    "fashion_mnist": {"train": 60_000, "test": 10_000},
    "cifar10": {"train": 50_000, "test": 10_000},
    "cifar100": {"train": 50_000, "test": 10_000},
    "imagenet2012": {"train": 1_281_167, "validation": 50_000},
}

# The largest published archive, CIFAR's, has 185 MB unpacked.
LARGEST = 200_000_000

_GZIP = b"\x1f\x8b"
_UINT8 = 8


def unpacked(path: Path) -> bytes:
    """Reads a file, unpacked if it is gzipped: `LARGEST` bytes at most, since some grow a thousandfold.

    Raises:
      ValueError: it has more, or is a FIFO or a device.
    """
    check_is_file(path)
    with path.open("rb") as file:
        data = (gzip.GzipFile(fileobj=file) if file.peek(2)[:2] == _GZIP else file).read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} bytes, unlike all that are published")
    return data


def read_idx(path: Path) -> np.ndarray:
    """Reads an idx file of unsigned bytes, gzipped or not (http://yann.lecun.com/exdb/mnist).

    Big endian: two zero bytes, the type (8: uint8), the number of dimensions, each as uint32, then the data.

    Raises:
      DamagedFile: it is no such file, or shorter or longer than its header says.
    """
    with reading(path, "a whole idx file of unsigned bytes"):
        data = unpacked(path)
        if data[:3] != bytes([0, 0, _UINT8]):
            raise ValueError(f"it begins with {data[:4].hex(' ')!r}")
        shape = struct.unpack_from(f">{data[3]}I", data, 4)
        start = 4 + 4 * len(shape)
        if len(data) - start != math.prod(shape):
            raise ValueError(f"the header says {shape}, but {len(data) - start} bytes follow")
        return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_cifar(data: bytes, labels: int, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Reads the binary version of CIFAR (https://www.cs.toronto.edu/~kriz/cifar.html).

    Args:
      data: records of `labels` label bytes and 3 x 32 x 32 pixels, colour first.
      labels: 1 for CIFAR-10, 2 (coarse and fine) for CIFAR-100.
      where: the file, for errors.

    Returns:
      Images `[N, 32, 32, 3]` and labels `[N, labels]`, uint8.

    Raises:
      DamagedFile: `data` is not a whole number of records.
    """
    size = labels + 3 * 32 * 32
    with reading(where, f"a whole number of records of {size} bytes"):
        if not data or len(data) % size:
            raise ValueError(f"{len(data)} bytes")
    rows = np.frombuffer(data, np.uint8).reshape(-1, size)
    return rows[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, :labels]


def read_members(source: Path, names: Sequence[str]) -> list[bytes]:
    """Reads the files `names` of a folder, or of a tar archive whatever folder they lie in there.

    Raises:
      DamagedFile: a file is missing, or the archive is damaged.
    """
    if source.is_dir():
        found = {name: (source / name).read_bytes() for name in names if (source / name).is_file()}
    else:
        with (
            reading(source, "a whole tar archive"),
            tarfile.open(fileobj=io.BytesIO(unpacked(source)), mode="r:") as tar,
        ):
            found = {name: data for name, data in _files(tar) if name in names}
    if missing := [name for name in names if name not in found]:
        raise DamagedFile(f"{source}: has no {', '.join(missing)}")
    return [found[name] for name in names]


def jpeg_bytes(data: bytes, where: str) -> bytes:
    """Makes a file of ImageNet an RGB or grey JPEG: 22 are CMYK and one is a PNG, these are encoded anew.

    Raises:
      DamagedFile: `data` is not an image.
    """
    with reading(where, "a JPEG or PNG image"):
        image = open_image(data)
        if image.format == "JPEG" and image.mode != "CMYK":
            return data
        encoded = io.BytesIO()
        image.convert("RGB").save(encoded, "JPEG", quality=100)
        return encoded.getvalue()


def idx_splits(builder, dl_manager) -> dict[str, Examples]:
    """Splits of MNIST and Fashion-MNIST: four idx files."""

    def files(prefix) -> list[Path]:
        names = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
        urls = {name: urljoin(builder.URL, f"{name}.gz") for name in names}
        return [_find_or_download(builder, dl_manager, url, name) for name, url in urls.items()]

    def examples(split, image_path, label_path) -> Examples:
        images, labels = read_idx(image_path), read_idx(label_path)
        if images.shape[1:] != (28, 28):
            raise DamagedFile(f"{image_path}: expected images [N, 28, 28], got {images.shape}")
        if labels.shape != (len(images),):
            raise DamagedFile(f"{image_path}, {label_path}: {len(images)} images, labels {labels.shape}")
        _check_count(image_path, len(images), PUBLISHED[builder.name][split])
        _check_labels(label_path, labels, builder.info.features["label"].num_classes)
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            # An array TFDS would encode with TensorFlow, an image with Pillow.
            yield i, {"image": Image.fromarray(image), "label": int(label)}

    return {"train": examples("train", *files("train")), "test": examples("test", *files("t10k"))}


def cifar_splits(builder, dl_manager) -> dict[str, Examples]:
    """Splits of CIFAR-10 and CIFAR-100: the binary version, as the archive or as the folder in it."""
    cifar = builder._cifar_info
    source = _find_or_download(builder, dl_manager, cifar.url, cifar.prefix.rstrip("/"))
    features = [builder.info.features[key] for key in cifar.label_keys]
    texts = read_members(source, cifar.label_files)
    for feature, name, text in zip(features, cifar.label_files, texts, strict=True):
        with reading(f"{source}, {name}", "a list of classes"):
            feature.names = text.decode().split()

    def examples(split, names) -> Examples:
        index = 0
        for name, data in zip(names, read_members(source, names), strict=True):
            where = f"{source}, {name}"
            images, labels = read_cifar(data, len(features), where)
            _check_count(where, len(images), PUBLISHED[builder.name][split] // len(names))
            for feature, column in zip(features, labels.T, strict=True):
                _check_labels(where, column, feature.num_classes)
            for image, row in zip(images, labels.tolist(), strict=True):
                example = {"id": f"{split}_{index:05d}", "image": Image.fromarray(image)}
                yield index, example | dict(zip(cifar.label_keys, row, strict=True))
                index += 1

    return {"train": examples("train", cifar.train_files), "test": examples("test", cifar.test_files)}


def imagenet_splits(builder, dl_manager) -> dict[str, Examples]:
    """Splits of ImageNet whose archives are there; they come from image-net.org, on request.

    They may also lie in `<data_dir>/downloads/manual`, where TFDS asks for them.
    """
    del dl_manager  # nothing of it can be downloaded
    own, manual = _folders(builder)
    archives = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}

    def examples(split, archive) -> Examples:
        read, count = {"train": _train_images, "validation": _validation_images}[split], 0
        check_is_file(archive)
        with reading(archive, "a whole tar archive"), tarfile.open(archive, "r:") as tar:
            for name, label, data in read(tar, builder.info.features["label"].names):
                image = jpeg_bytes(data, f"{archive}, {name}")
                yield name, {"file_name": name, "image": image, "label": label}
                count += 1
        _check_count(archive, count, PUBLISHED[builder.name][split])

    found = {split: _find((own, manual, manual.parent), [name]) for split, name in archives.items()}
    if not any(found.values()):
        raise FileNotFoundError(
            f"imagenet2012: no program may download it. Get {' and '.join(archives.values())} from "
            f"https://image-net.org/download-images and put them into {own} or {manual.parent}."
        )
    return {split: examples(split, archive) for split, archive in found.items() if archive}


def _without_tensorflow(canonical, splits, **attributes):
    """Replaces the generators of a canonical builder."""
    attributes |= {"_split_generators": splits, "__module__": __name__, "name": canonical.name}
    attributes |= {"may_download": False}
    options = {"skip_registration": True}  # the name is taken, by the canonical one
    return types.new_class(canonical.__name__, (canonical,), options, lambda body: body.update(attributes))


BUILDERS = {
    "mnist": _without_tensorflow(tfds.image_classification.MNIST, idx_splits),
    "fashion_mnist": _without_tensorflow(tfds.image_classification.FashionMNIST, idx_splits),
    "cifar10": _without_tensorflow(tfds.image_classification.Cifar10, cifar_splits),
    "cifar100": _without_tensorflow(tfds.image_classification.Cifar100, cifar_splits),
    "imagenet2012": _without_tensorflow(
        imagenet2012_dataset_builder.Builder,
        imagenet_splits,
        # The description lies beside the canonical builder.
        pkg_dir_path=tfds.core.Path(imagenet2012_dataset_builder.__file__).parent,
    ),
}


def _folders(builder) -> tuple[Path, Path]:
    """Folders where users put official files."""
    own = Path(builder.data_path).parent
    return own, own.parent / "downloads" / "manual" / own.name


def _find(folders, names) -> Path | None:
    return next((f / name for f in folders for name in names if (f / name).exists()), None)


def _find_or_download(builder, dl_manager, url, unpacked) -> Path:
    """Finds what the user has put, packed or unpacked, or else downloads it."""
    name = url.rsplit("/", 1)[-1]
    own, manual = _folders(builder)
    if found := _find((own, manual), [unpacked, name]):
        return found
    if not builder.may_download:
        raise FileNotFoundError(f"{builder.name}: there is no {name} in {own}, and no leave to download it")
    try:
        return Path(dl_manager.download(url))
    except (OSError, tfds.download.DownloadError) as error:
        advice = f"Get {name} by other means and put it into {own}"
        raise ConnectionError(f"{builder.name}: cannot download {url}. {advice}. ({error})") from error


def _check_count(where, count, published):
    """Refuses sets that lack images: only their number tells it where a format has no checksum."""
    if count != published:
        raise DamagedFile(f"{where}: {count} images, the published set has {published}")


def _check_labels(where, labels, classes):
    if len(wrong := np.flatnonzero(labels >= classes)):
        raise DamagedFile(
            f"{where}: label {labels[wrong[0]]} of image {wrong[0]} is outside 0..{classes - 1}"
        )


def _files(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of all files; links, files with holes and sizes beyond the archive are damage."""
    file: Any = tar.fileobj
    end = file.seek(0, os.SEEK_END)
    for member in tar:
        if member.isdir():
            continue
        whole = 0 <= member.size <= end - member.offset_data
        if not (whole and member.isreg() and not member.issparse()):
            raise ValueError(f"{member.name} is not a whole, plain file")
        if content := tar.extractfile(member):
            yield os.path.basename(member.name), content.read()


def _train_images(tar: tarfile.TarFile, classes: Sequence[str]) -> Iterator[tuple[str, str, bytes]]:
    """Name, class and bytes of every image in an archive of one archive a class."""
    for name, data in _files(tar):
        label = name.removesuffix(".tar")
        if label not in classes:
            raise ValueError(f"{name} is not named after a class")
        where = f"{tar.name}, {name}"
        with (
            reading(where, "a whole tar archive"),
            tarfile.open(fileobj=io.BytesIO(data), mode="r:") as inner,
        ):
            for image, content in _files(inner):
                yield image, label, content


def _validation_images(tar: tarfile.TarFile, classes: Sequence[str]) -> Iterator[tuple[str, str, bytes]]:
    """Name, class and bytes of every image; TFDS has the classes, in the order of the names."""
    del classes
    labels = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    for name, data in _files(tar):
        match = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
        if match is None or not 1 <= int(match[1]) <= len(labels):
            raise ValueError(f"{name} is not the name of a validation image 1..{len(labels)}")
        yield name, labels[int(match[1]) - 1], data
