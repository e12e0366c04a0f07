"""Images in class folders as arrays."""

import os
import re

import numpy as np
import pytest
from PIL import Image

from sltt_jax.damage import DamagedFile
from sltt_jax.data import arrays
from sltt_jax.data.images.folders import load_image_folder
from tests.common.photographs import encoded, ramp


def save(root, images):
    """Each as `<name>`, an image or bytes."""
    for name, image in images.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, bytes):
            path.write_bytes(image)
        else:
            image.save(path)
    return root


def grey(value, size=(6, 4), mode="L"):
    return Image.new("L", size, value).convert(mode)


def two_classes(root, **more):
    images = {f"{name}/{i}.png": grey(10 * i + y) for y, name in enumerate("ab") for i in range(5)}
    return save(root, images | {f"a/{name}.png": image for name, image in more.items()})


def test_grey_images(tmp_path):
    found, classes = load_image_folder(two_classes(tmp_path))
    assert classes == ("a", "b") and found.classes == 2
    assert found.train_x.shape == (8, 4, 6, 1) and found.test_x.shape == (2, 4, 6, 1)
    x, y = np.r_[found.train_x, found.test_x], np.r_[found.train_y, found.test_y]
    assert x.dtype == np.uint8 and y.dtype == np.int32
    assert sorted(x[:, 0, 0, 0]) == sorted(10 * i + y for i in range(5) for y in (0, 1))
    assert (x[:, 0, 0, 0] % 10 == y).all() and (x == x[:, :1, :1]).all()


def test_one_image_with_colour_makes_three_channels(tmp_path):
    colours = {"rgb": Image.new("RGB", (6, 4), (1, 2, 3)), "p": grey(7, mode="P"), "la": grey(7, mode="LA")}
    colours["rgba"] = Image.new("RGBA", (6, 4), (4, 5, 6, 255))
    found, _ = load_image_folder(two_classes(tmp_path, **colours))
    x = np.r_[found.train_x, found.test_x][:, 0, 0]
    assert x.shape == (14, 3)
    assert {(1, 2, 3), (4, 5, 6), (7, 7, 7), (11, 11, 11)} <= set(map(tuple, x.tolist()))


def test_images_are_brought_to_a_size(tmp_path):
    images = {f"{name}/{i}.jpg": encoded(ramp(90 + 10 * i, 60)) for name in "ab" for i in range(2)}
    found, _ = load_image_folder(save(tmp_path, images), size=32)
    assert found.train_x.shape == (2, 32, 32, 3)
    # The middle of 60 of 90 (or 100) columns, and all rows.
    assert abs(found.train_x[:, :, 16, 0].mean() - 128) < 6
    assert abs(found.train_x[:, :, 0, 0].mean() - 256 * 0.18) < 12 and found.train_x[:, 0, :, 1].max() < 12


def test_a_cache_keeps_the_pixels(tmp_path):
    folder = two_classes(tmp_path / "images")
    first, _ = load_image_folder(folder, cache=tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    again, _ = load_image_folder(folder, cache=tmp_path / "cache")
    np.testing.assert_array_equal(first.train_x, again.train_x)
    load_image_folder(folder, size=4, cache=tmp_path / "cache")
    save(folder, {"a/0.png": grey(99)})
    changed, _ = load_image_folder(folder, cache=tmp_path / "cache")
    assert (changed.train_x == 99).any() or (changed.test_x == 99).any()
    assert len(list((tmp_path / "cache").iterdir())) == 3 and kept.exists()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "not a JPEG or PNG image"),
        (b"GIF89a" + bytes(40), "not a JPEG or PNG image"),
        (encoded(ramp(6, 4), "PNG")[:50], "not a (whole, opaque )?JPEG or PNG image"),
        (encoded(ramp(6, 4))[:-8], "not a whole, opaque JPEG or PNG image"),
        (encoded(Image.new("I;16", (6, 4)), "PNG"), "its pixels are I;16, not of 8 bits"),
        (encoded(Image.new("RGBA", (6, 4), (1, 2, 3, 254)), "PNG"), "it has transparent pixels"),
    ],
)
def test_images_that_are_refused(tmp_path, image, message):
    folder = save(two_classes(tmp_path), {"b/odd.png": image})
    with pytest.raises(DamagedFile, match=f"^{re.escape(str(folder / 'b' / 'odd.png'))}: .*{message}"):
        load_image_folder(folder)


def test_sizes_that_differ_are_told_before_anything_is_decoded(tmp_path):
    folder = two_classes(tmp_path, large=grey(1, (8, 4)))
    with pytest.raises(ValueError, match=r"images differ in size: .*png is 4 x \d, .*png is 4 x \d; a size"):
        load_image_folder(folder)
    with pytest.raises(ValueError, match="size must be >= 1, got 0"):
        load_image_folder(folder, size=0)


def test_more_than_the_memory_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sysconf", lambda name: 10)
    with pytest.raises(ValueError, match=r"10 images \(4, 6, 1\) need 0.0 GB, and this machine has 0.0 GB"):
        load_image_folder(two_classes(tmp_path))
    arrays.check_memory(100, "all")


def test_a_pipe_is_not_waited_for(tmp_path):
    folder = two_classes(tmp_path)
    os.mkfifo(folder / "a" / "pipe.png")
    with pytest.raises(DamagedFile, match=r"pipe\.png: not a regular file"):
        load_image_folder(folder)
