"""Images in class folders, JPEG or PNG, as arrays."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from sltt_jax.damage import check_is_file, reading
from sltt_jax.data.arrays import ArrayData, check_memory
from sltt_jax.data.cache import cached
from sltt_jax.data.class_folders import LabelledFile, find_class_files
from sltt_jax.data.images.decoding import open_image, resize_center_crop

SUFFIXES = ".jpeg", ".jpg", ".png"
GREY = "1", "L", "LA"
COLOUR = "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"


def load_image_folder(
    folder: str | Path,
    *,
    size: int | None = None,
    test_share: float = 0.2,
    cache: str | Path | None = None,
) -> tuple[ArrayData, tuple[str, ...]]:
    """Loads `<folder>/<class>/<image>`, or `<folder>/train/<class>/<image>` and `test/` beside it.

    Args:
      folder: see `find_class_files`.
      size: height and width that the images are brought to, the shorter side first, of which the middle is
        kept; by default they are as they are, and must be of one size.
      test_share: where there is no `train/` and `test/`, see `find_class_files`.
      cache: the folder to keep the arrays in; None: they are made anew each time.

    Returns:
      Pixels `[N, H, W, C]`, uint8, of one channel if all images are grey and else of three; and the names of
      the classes.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: as `find_class_files`; a file is damaged, not such an image, transparent or of another size;
        or all are too many for the memory of this machine.
    """
    folder = Path(folder)
    if size is not None and size < 1:
        raise ValueError(f"size must be >= 1, got {size}")
    found = find_class_files(folder, SUFFIXES, test_share=test_share)

    def build() -> dict[str, np.ndarray]:
        headers = [_header(file.path) for file in tqdm((*found.train, *found.test), "headers", disable=None)]
        width, height = (size, size) if size else _one_size(headers)
        channels = 1 if all(header.mode in GREY for header in headers) else 3
        shape = height, width, channels
        check_memory(len(headers) * height * width * channels, f"{folder}: {len(headers)} images {shape}")
        arrays = {}
        for name, files in (("train", found.train), ("test", found.test)):
            arrays[f"{name}_x"], arrays[f"{name}_y"] = _decode(name, files, shape, size)
        return arrays

    options = {"size": size, "test_share": test_share, "classes": found.classes}
    paths = [file.path for file in (*found.train, *found.test)]
    return cached(cache, "images", options, folder, paths, build, len(found.classes)), found.classes


class _Header(NamedTuple):
    path: Path
    size: tuple[int, int]
    mode: str


def _header(path: Path) -> _Header:
    check_is_file(path)
    with reading(path, "a JPEG or PNG image"):
        image = open_image(path.read_bytes())
        if image.mode not in (*GREY, *COLOUR):
            raise ValueError(f"its pixels are {image.mode}, not of 8 bits")
        return _Header(path, image.size, image.mode)


def _one_size(headers: Sequence[_Header]) -> tuple[int, int]:
    """Width and height of all images."""
    first = headers[0]
    for other in headers:
        if other.size != first.size:
            sizes = (f"{h.path} is {h.size[1]} x {h.size[0]}" for h in (first, other))
            raise ValueError(f"images differ in size: {', '.join(sizes)}; a size brings them to one")
    return first.size


def _decode(name: str, files: Sequence[LabelledFile], shape: tuple[int, int, int], size: int | None):
    """Pixels `[N, *shape]` and labels `[N]` of a split."""
    xs, ys = np.empty((len(files), *shape), np.uint8), np.empty(len(files), np.int32)
    for i, (path, label) in enumerate(tqdm(files, f"{name} images", disable=None)):
        with reading(path, "a whole, opaque JPEG or PNG image"):
            image = _opaque(open_image(path.read_bytes())).convert("L" if shape[2] == 1 else "RGB")
            image = image if size is None else resize_center_crop(image, size, size)
            xs[i], ys[i] = np.asarray(image).reshape(shape), label
    return xs, ys


def _opaque(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        opacity = np.asarray(image.convert("RGBA"))[..., 3]
        if opacity.min() < 255:
            raise ValueError("it has transparent pixels, which have no colour")
    return image
