"""Photographs: from the official archives, written here, to batches."""

import io
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from sltt_jax.data.images import tfds_builders
from sltt_jax.data.images.imagenet import (
    ImageStream,
    evaluation_batches,
    random_resized_crop,
    resize_center_crop,
)
from sltt_jax.data.images.tfds_sets import image_records


def ramp(width, height):
    """Red tells the column and green the row of a pixel, as shares of 256."""
    x, y = np.arange(width) * 256 // width, np.arange(height) * 256 // height
    return Image.fromarray(np.stack([*np.meshgrid(x, y), np.zeros((height, width))], -1).astype(np.uint8))


def encoded(image, form="JPEG", **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


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
        stream.set_state({"batch": batch})
        np.testing.assert_array_equal(labels(stream, 1)[0], y[batch])
        assert stream.get_state() == {"batch": batch + 1}
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
    other.set_state({"batch": 1})
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


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2]])
def test_damaged_image(damage):
    whole = encoded(ramp(300, 300))
    records = [{"image": damage(whole), "label": 0, "file_name": b"n01440764_7.JPEG"}]
    with pytest.raises(ValueError, match=r"n01440764_7.JPEG is damaged"):
        next(ImageStream(records, 1, seed=0))


def tar(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def photo(i):
    return Image.new("RGB", (40 + i, 30), (40 * i, 0, 100))


TRAIN = {
    "n01440764": {f"n01440764_{i}.JPEG": encoded(photo(i)) for i in range(4)},
    "n02105855": {
        "n02105855_2933.JPEG": encoded(photo(4), "PNG"),
        "n02105855_5.JPEG": encoded(photo(5).convert("CMYK")),
        "n02105855_6.JPEG": encoded(photo(6).convert("L")),
    },
}
VALIDATION = {f"ILSVRC2012_val_{i:08d}.JPEG": encoded(photo(i)) for i in (3, 1, 2)}
FILES = {
    "ILSVRC2012_img_train.tar": tar({f"{name}.tar": tar(images) for name, images in TRAIN.items()}),
    "ILSVRC2012_img_val.tar": tar(VALIDATION),
}


@pytest.fixture(autouse=True)
def small_set(monkeypatch):
    monkeypatch.setitem(tfds_builders.PUBLISHED, "imagenet2012", {"train": 7, "validation": 3})


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


def test_official_archives(tmp_path):
    write(tmp_path / "downloads" / "manual", FILES)
    records = image_records("imagenet2012", "train", tmp_path)
    by_name = {r["file_name"].decode(): r for r in (records[i] for i in range(len(records)))}
    assert {name: record["label"] for name, record in by_name.items()} == {
        name: label for (_, images), label in zip(TRAIN.items(), (0, 230), strict=True) for name in images
    }
    for name, record in by_name.items():
        image = Image.open(io.BytesIO(record["image"]))
        assert image.format == "JPEG" and image.mode == ("L" if name == "n02105855_6.JPEG" else "RGB")
        i = image.width - 40
        expected = photo(i).convert(image.mode).getpixel((0, 0))
        np.testing.assert_allclose(image.getpixel((20, 15)), expected, atol=4)
    # Published bytes stay as they are.
    name = "n01440764_2.JPEG"
    assert by_name[name]["image"] == TRAIN["n01440764"][name]

    # TFDS reads it; the labels of the first three validation images are its own.
    source = tfds.data_source("imagenet2012", split="validation", data_dir=tmp_path)
    synsets = source.dataset_info.features["label"].names
    assert {r["file_name"][-7:]: synsets[r["label"]] for r in source} == {
        b"01.JPEG": "n01751748",
        b"02.JPEG": "n09193705",
        b"03.JPEG": "n02105855",
    }
    # Through worker processes, which need the records pickled.
    assert sorted(next(ImageStream(records, 7, seed=0, workers=1))["y"]) == [0] * 4 + [230] * 3


def test_validation_alone(tmp_path):
    write(tmp_path / "imagenet2012", {"ILSVRC2012_img_val.tar": FILES["ILSVRC2012_img_val.tar"]})
    assert len(image_records("imagenet2012", "validation", tmp_path)) == 3
    with pytest.raises(ValueError, match=r"train.*validation"):
        image_records("imagenet2012", "train", tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"ILSVRC2012_img_train.tar": b""}, r"img_train.tar: not a whole tar archive"),
        (
            {"ILSVRC2012_img_train.tar": FILES["ILSVRC2012_img_train.tar"][:8000]},
            r"img_train.tar: not a whole",
        ),
        ({"ILSVRC2012_img_train.tar": tar({"n01440764.tar": b"x" * 600})}, r"img_train.tar.*n01440764.tar"),
        (
            {"ILSVRC2012_img_train.tar": tar({"n01440764.tar": tar({"a.JPEG": b"x"})})},
            r"a.JPEG: not an image",
        ),
        ({"ILSVRC2012_img_val.tar": tar({"a.JPEG": b"x"})}, r"a.JPEG is not the name of a validation image"),
        (
            {"ILSVRC2012_img_val.tar": tar(dict(list(VALIDATION.items())[:2]))},
            r"2 images, the published set has 3",
        ),
    ],
)
def test_bad_archives(files, message, tmp_path):
    write(tmp_path / "imagenet2012", files)
    with pytest.raises(ValueError, match=message):
        image_records("imagenet2012", "train", tmp_path)


def test_no_archives(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=rf"img_train.tar and .*img_val.tar .*{tmp_path}/downloads/manual"
    ):
        image_records("imagenet2012", "train", tmp_path)
