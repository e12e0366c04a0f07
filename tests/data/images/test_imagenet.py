"""Batches of photographs: cropped, flipped, evaluated, and refused when damaged."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sltt_jax.data.images.imagenet import (
    ImageStream,
    evaluation_batches,
    random_resized_crop,
    resize_center_crop,
)
from tests.common.photographs import encoded, ramp


class Memory:
    """Records of one grey value each, which is their label."""

    def __init__(self, count):
        self.items = [
            {"image": encoded(Image.new("RGB", (60, 40), (i, i, i)), "PNG"), "label": i} for i in range(count)
        ]

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def test_center_crop():
    image = ramp(512, 256)
    np.testing.assert_array_equal(resize_center_crop(image), np.asarray(image)[16:240, 144:368])
    # 300 x 500 becomes 256 x 426, of which rows 101..325 and columns 16..240 are left.
    x = np.asarray(resize_center_crop(ramp(300, 500))).astype(float)
    assert x.shape == (224, 224, 3)
    np.testing.assert_allclose(x[:, 100, 1], (np.arange(224) + 101.5) / 426 * 256, atol=1.5)
    np.testing.assert_allclose(x[100, :, 0], (np.arange(224) + 16.5), atol=1.5)


def test_random_resized_crop():
    width, height = 1024, 768
    image, rng = ramp(width, height), np.random.default_rng(0)
    boxes = []
    for _ in range(200):
        x = np.asarray(random_resized_crop(image, rng)).astype(int)
        assert x.shape == (224, 224, 3)
        (left, right), (top, bottom) = ((x[..., c].min() / 256, (x[..., c].max() + 1) / 256) for c in (0, 1))
        boxes.append((left, right, top, bottom))
    left, right, top, bottom = np.array(boxes).T
    area, ratio = (right - left) * (bottom - top), (right - left) / (bottom - top) * width / height
    # Columns and rows are told to 1 / 256.
    assert 0.07 < area.min() < 0.12 and 0.93 < area.max() <= 1
    assert 0.73 < ratio.min() < 0.80 and 1.25 < ratio.max() < 1.36
    assert left.min() == 0 and top.min() == 0 and right.max() == 1 and bottom.max() == 1
    # Of draws that fit, here those with area <= 3/4 ratio: E[(3/4 r)^2 - 0.08^2] / 2 / E[3/4 r - 0.08].
    assert area.mean() == pytest.approx(0.432, abs=0.05)
    # Nothing of 3:4 to 4:3 and 8 % fits into a strip: the middle of it is taken.
    for size, c in (((2048, 64), 0), ((64, 2048), 1)):
        x = np.asarray(random_resized_crop(ramp(*size), rng))[..., c]
        assert x.min() == 256 * (1024 - 42) // 2048 and x.max() == 256 * (1024 + 42) // 2048


@pytest.mark.parametrize("size", [(1, 65_000), (65_000, 1), (20, 330)])
def test_only_the_middle_of_a_strip_is_resized(size, monkeypatch):
    largest, resize = [], Image.Image.resize

    def spy(image, size, *args):
        largest.append(size[0] * size[1])
        return resize(image, size, *args)

    image = ramp(*size)
    with monkeypatch.context() as watched:
        watched.setattr(Image.Image, "resize", spy)
        x = np.asarray(resize_center_crop(image)).astype(int)
    assert x.shape == (224, 224, 3) and max(largest) <= 17 * 256**2
    # The middle of the strip, as much of it as the whole would have shown.
    long = 1 if size[1] > size[0] else 0
    assert x[..., long].min() >= 120 and x[..., long].max() <= 136 and abs(x[..., long].mean() - 127.5) < 4


def labels(stream, count):
    batches = [next(stream) for _ in range(count)]
    for batch in batches:
        assert batch["x"].shape[1:] == (224, 224, 3) and batch["x"].dtype == np.uint8
        assert batch["y"].dtype == np.int32
        assert (batch["x"] == batch["y"][:, None, None, None]).all()  # an image stays with its label
    return np.array([batch["y"] for batch in batches])


def test_stream():
    records = Memory(10)
    stream = ImageStream(records, 4, seed=0)
    assert stream.steps_per_epoch == 2
    y = labels(stream, 6)
    for epoch in (y[:2], y[2:4], y[4:]):
        assert len(set(epoch.ravel())) == 8
    assert (y[:2] != y[2:4]).any() and (y[:2] != labels(ImageStream(records, 4, seed=1), 2)).any()
    # Back to any batch, also of another epoch.
    for batch in (3, 0, 5):
        stream.set_state({**stream.get_state(), "batch": batch})
        np.testing.assert_array_equal(labels(stream, 1)[0], y[batch])
        assert stream.get_state()["batch"] == batch + 1
    for other in (ImageStream(records, 5, seed=0), ImageStream(Memory(11), 4, seed=0)):
        with pytest.raises(ValueError, match="is no position in batches of "):
            other.set_state(stream.get_state())
    # Processes share every batch.
    parts = [labels(ImageStream(records, 4, seed=0, process=p, processes=2), 6) for p in (0, 1)]
    np.testing.assert_array_equal(np.stack(parts, -1).reshape(y.shape), y)


class Ramp(Memory):
    def __init__(self, count):
        self.items = [{"image": encoded(ramp(320, 320), "PNG"), "label": 1}] * count


@pytest.mark.parametrize(
    ("part", "options"),
    [
        pytest.param(slice(None), {"workers": 2}, marks=pytest.mark.slow, id="two workers"),
        pytest.param(slice(1, None, 2), {"process": 1, "processes": 2}, id="one of two processes"),
    ],
)
def test_stream_augments_the_same_way_everywhere(part, options):
    records = Ramp(32)
    stream = ImageStream(records, 16, seed=0)
    first, second, third, _ = (next(stream)["x"] for _ in range(4))
    flipped = [x[0, 0, 0] > x[0, -1, 0] for x in np.concatenate([first, second])]
    assert 6 < sum(flipped) < 26
    assert len({x.tobytes() for x in np.concatenate([first, second, third])}) == 48  # also over epochs
    other = ImageStream(records, 16, seed=0, **options)
    other.set_state({**other.get_state(), "batch": 1})
    np.testing.assert_array_equal(next(other)["x"], second[part])
    np.testing.assert_array_equal(next(other)["x"], third[part])


@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_counts_every_image_once(processes):
    counted = []
    for process in range(processes):
        batches = list(evaluation_batches(Memory(9), 4, process=process, processes=processes))
        assert len(batches) == 3 and all(len(b["x"]) == 4 // processes for b in batches)
        for batch in batches:
            assert (batch["x"] == batch["y"][:, None, None, None]).all()
            counted += batch["y"][batch["mask"] == 1].tolist()
    assert sorted(counted) == list(range(9))


def test_wrong_options():
    for size in (0, 5):
        with pytest.raises(ValueError, match=rf"batch_size must be in 1..4, .* got {size}"):
            ImageStream(Memory(4), size, seed=0)
    for size, process in ((3, 0), (4, 2), (4, -1), (0, 0)):
        with pytest.raises(
            ValueError, match=rf"process {process} of 2 cannot have its part of {size} images"
        ):
            evaluation_batches(Memory(4), size, process=process, processes=2)
    with pytest.raises(ValueError, match=r"process 0 of 2 cannot have its part of 3 images"):
        ImageStream(Memory(4), 3, seed=0, processes=2)


def png_of(width, height):
    """A PNG that claims a size: its data end at once."""
    chunk = lambda kind, data: (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


EPS = encoded(ramp(20, 20), "EPS")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "it begins with b.*, and its header cannot be read"),
        (lambda data: data[: len(data) // 2], "image file is truncated"),
        # Pillow would start Ghostscript.
        (lambda data: EPS, "it begins with b.*, and its header cannot be read"),
        (lambda data: encoded(ramp(20, 20), "BMP"), "it begins with b.*, and its header cannot be read"),
        (lambda data: png_of(40_000, 40_000), r"Image size \(1600000000 pixels\) exceeds limit"),
        (lambda data: png_of(10_000, 10_000), "it has 10000 x 10000 pixels, more than 89,478,485"),
    ],
    ids=["empty", "half", "EPS", "BMP", "a bomb", "a smaller bomb"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_image(damage, message):
    whole = encoded(ramp(300, 300))
    records = [{"image": damage(whole), "label": 0, "file_name": b"n01440764_7.JPEG"}]
    with pytest.raises(ValueError, match=f"image n01440764_7.JPEG: not a whole JPEG or PNG: {message}"):
        next(ImageStream(records, 1, seed=0))
