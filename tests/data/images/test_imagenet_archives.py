"""ImageNet from the official archives, written here, through TFDS to records and batches."""

import gzip
import io
import os
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from sltt_jax.data.images import tfds_builders
from sltt_jax.data.images.imagenet import ImageStream
from sltt_jax.data.images.tfds_sets import image_records
from tests.common.photographs import encoded, photo, tar

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


def header(kind=tarfile.REGTYPE, **fields):
    member = tarfile.TarInfo("n01440764.tar")
    member.type = kind
    for name, value in fields.items():
        setattr(member, name, value)
    return member


@pytest.fixture(autouse=True)
def small_set(monkeypatch):
    monkeypatch.setitem(tfds_builders.PUBLISHED, "imagenet2012", {"train": 7, "validation": 3})


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


@pytest.mark.slow
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
            r"a.JPEG: not a JPEG or PNG image",
        ),
        (
            {"ILSVRC2012_img_train.tar": tar({"n7.tar": tar({"a.JPEG": b"x"})})},
            r"n7.tar is not named after a",
        ),
        (
            {"ILSVRC2012_img_train.tar": tar({"x": header(tarfile.SYMTYPE, linkname="nothing")})},
            "img_train.tar: .*n01440764.tar is not a whole, plain file",
        ),
        (
            {"ILSVRC2012_img_train.tar": tar({"x": header(tarfile.GNUTYPE_SPARSE)})},
            "n01440764.tar is not a whole, plain file",
        ),
        (
            {"ILSVRC2012_img_train.tar": tar({"x": header(pax_headers={"GNU.sparse.size": f"{2**40}"})})},
            "n01440764.tar is not a whole, plain file",
        ),
        (
            {"ILSVRC2012_img_train.tar": tar({"x": header(size=2**40)})},
            "n01440764.tar is not a whole, plain file",
        ),
        ({"ILSVRC2012_img_train.tar": gzip.compress(FILES["ILSVRC2012_img_train.tar"])}, "not a whole tar"),
        *(
            (
                {"ILSVRC2012_img_val.tar": tar({f"ILSVRC2012_val_{number}.JPEG": encoded(photo(1))})},
                rf"img_val.tar: .*val_{number}.JPEG is not the name of a validation image 1..50000",
            )
            for number in ("00000000", "00050001")
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="only Unix has FIFOs in folders")
def test_a_fifo_is_refused_and_not_waited_for(tmp_path):
    path = tmp_path / "imagenet2012" / "ILSVRC2012_img_val.tar"
    path.parent.mkdir()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=f"{path}: not a regular file"):
        image_records("imagenet2012", "validation", tmp_path)


def test_no_archives(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=rf"img_train.tar and .*img_val.tar .*{tmp_path}/downloads/manual"
    ):
        image_records("imagenet2012", "train", tmp_path)
