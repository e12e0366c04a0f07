"""Prepared image sets: made once by whichever process is first, read by all, and refused when damaged."""

import io
import json
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from sltt_jax.damage import DamagedFile
from sltt_jax.data.images import tfds_builders, tfds_sets
from sltt_jax.data.images.tfds_sets import load_images
from tests.common.official_files import SIZES, official_files, random_set, write
from tests.common.photographs import encoded


def test_another_process_prepares_the_same_set(tmp_path, monkeypatch):
    """It begins and ends while this one reads the official files."""
    write(tmp_path / "mnist", official_files("mnist", random_set("mnist")))
    first, read = [], tfds_builders.read_idx

    def read_idx(path):
        if not first:
            first.append(None)
            first[0] = load_images("mnist", tmp_path)
        return read(path)

    monkeypatch.setattr(tfds_builders, "read_idx", read_idx)
    second = load_images("mnist", tmp_path)
    np.testing.assert_array_equal(second.train_x, first[0].train_x)
    np.testing.assert_array_equal(second.test_y, first[0].test_y)
    # Of the loser's work nothing is left.
    assert [p.name for p in (tmp_path / "mnist").iterdir() if p.is_dir()] == ["3.0.1"]
    assert len(list((tmp_path / "decoded").iterdir())) == 1


@pytest.mark.parametrize("call", [1, 2])
def test_another_process_prepares_between_two_looks(call, tmp_path, monkeypatch):
    """The builder that was made before it did so knows nothing of the set."""
    write(tmp_path / "mnist", official_files("mnist", random_set("mnist")))
    make, calls = tfds_sets._builder, []

    def builder(*args):
        made = make(*args)
        calls.append(1)
        if len(calls) == call:
            load_images("mnist", tmp_path)
        return made

    monkeypatch.setattr(tfds_sets, "_builder", builder)
    assert len(load_images("mnist", tmp_path).train_x) == SIZES["train"]


def test_rests_of_a_killed_preparation(tmp_path):
    write(tmp_path / "mnist", official_files("mnist", random_set("mnist")))
    rests = [tmp_path / "mnist" / f"incomplete.{name}_3.0.1" for name in ("OLD000", "YOUNG0")]
    for rest in rests:
        write(rest, {"mnist-train.array_record-00000-of-00001": b"half"})
    for path in (rests[0], *rests[0].iterdir()):
        os.utime(path, (0, 0))
    load_images("mnist", tmp_path)
    assert [rest.exists() for rest in rests] == [False, True]


def test_failed_preparation_is_not_taken_for_another_process(tmp_path, monkeypatch):
    write(tmp_path / "mnist", official_files("mnist", random_set("mnist")))

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tfds_builders, "read_idx", full)
    with pytest.raises(OSError, match="No space left"):
        load_images("mnist", tmp_path)


def edit_info(change):
    def edit(folder):
        path = folder / "dataset_info.json"
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return edit


def many(split):
    return split | {"shardLengths": ["999999999999"]}


SHARD = "mnist-train.array_record-00000-of-00001"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "dataset_info.json").unlink(),
            "half prepared, it has no dataset_info.json",
        ),
        (lambda folder: (folder / SHARD).unlink(), f"half prepared, it has no {SHARD}"),
        (lambda folder: os.truncate(folder / "dataset_info.json", 100), "damaged dataset_info.json"),
        (
            lambda folder: os.truncate(folder / SHARD, 1000),
            "train, record 0: not a whole record. Delete the folder",
        ),
        (
            lambda folder: os.truncate(folder / SHARD, 0),
            "10 records of train in 0 bytes. Delete the folder",
        ),
        (
            edit_info(lambda info: info | {"splits": [many(split) for split in info["splits"]]}),
            r"999999999999 records of \w+ in \d+ bytes. Delete the folder",
        ),
        (
            edit_info(lambda info: info | {"fileFormat": "tfrecord"}),
            "prepared as tfrecord.* tfds convert_format",
        ),
    ],
)
def test_damaged_prepared_set(damage, message, tmp_path):
    write(tmp_path / "mnist", official_files("mnist", random_set("mnist")))
    load_images("mnist", tmp_path)
    damage(tmp_path / "mnist" / "3.0.1")
    with pytest.raises(ValueError, match=f"(?s){tmp_path}.*{message}"):
        load_images("mnist", tmp_path)


class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A set that this library does not know."""

    VERSION = tfds.core.Version("1.0.0")
    SIZE, FORM = (5, 4), "PNG"

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 5, 3)),
            "label": tfds.features.ClassLabel(num_classes=7),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6), "validation": self._generate_examples(3)}

    def _generate_examples(self, count):
        for i in range(count):
            out = io.BytesIO()
            Image.new("RGB", self.SIZE, (i, 0, 0)).save(out, self.FORM)
            yield i, {"image": io.BytesIO(out.getvalue()), "label": i}


def test_any_prepared_set(tmp_path):
    with pytest.raises(ValueError, match="pictures"):
        load_images("pictures", tmp_path)
    Pictures(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    loaded = load_images("pictures", tmp_path)
    assert (
        loaded.classes == 7 and loaded.train_x.shape == (6, 4, 5, 3) and loaded.test_x.shape == (3, 4, 5, 3)
    )
    np.testing.assert_array_equal(loaded.train_x[:, 3, 4, 0], loaded.train_y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # Both have as many pixels as they should; Pillow would start Ghostscript for an EPS.
        ({"SIZE": (4, 5)}, r"record 0: not a JPEG or PNG image \(4, 5, 3\)..*it is 5 x 4"),
        (
            {"FORM": "EPS"},
            r"record 0: not a JPEG or PNG image \(4, 5, 3\)..*its header cannot be read",
        ),
    ],
)
def test_other_images_than_the_set_says(change, message, tmp_path, monkeypatch):
    for name, value in change.items():
        monkeypatch.setattr(Pictures, name, value)
    Pictures(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(DamagedFile, match=f"pictures.*{message}"):
        load_images("pictures", tmp_path)


@pytest.mark.parametrize("label", [-1, 7, 2**32])
def test_labels_of_records_are_checked(label):
    records = tfds_sets.Records([{"image": b"", "label": np.int64(label)}], "set, train", 7)
    with pytest.raises(DamagedFile, match=f"set, train, record 0: .*label {label} is outside 0..6"):
        records[0]


def test_sets_that_cannot_be_had(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"kmnist/3.0.1 is not in .* tfds build kmnist"):
        load_images("kmnist", tmp_path)
    with pytest.raises(ValueError, match=r"imagenet2012: only images of one size"):
        load_images("imagenet2012", tmp_path)


def test_mocked_set(tmp_path):
    # What TFDS makes up by itself is not encoded.
    png = encoded(Image.new("RGB", (32, 32)), "PNG")
    records = lambda *_, **__: [{"image": png, "label": i} for i in range(7)]
    with tfds.testing.mock_data(num_examples=7, data_dir=tmp_path, as_data_source_fn=records):
        loaded = load_images("cifar100", tmp_path)
    assert loaded.train_x.shape == (7, 32, 32, 3) and loaded.classes == 100


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="only Unix has FIFOs in folders")
@pytest.mark.parametrize(
    "name", ["train-images-idx3-ubyte.gz", "3.0.1/mnist-train.array_record-00000-of-00001"]
)
def test_a_fifo_is_refused_and_not_waited_for(name, tmp_path):
    """In place of an official file, and of one that was made of them."""
    write(tmp_path / "mnist", official_files("mnist", random_set("mnist")))
    path = tmp_path / "mnist" / name
    if not path.exists():
        load_images("mnist", tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DamagedFile, match=f"{path}: not a regular file"):
        load_images("mnist", tmp_path)
