"""Prepared image sets: made once by whichever process is first, read by all, and refused when damaged."""

import io
import json
import os

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from sltt_jax.data.images import tfds_builders, tfds_sets
from sltt_jax.data.images.tfds_sets import load_images
from tests.common.official_files import SIZES, official_files, random_set, write


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
        (lambda folder: os.truncate(folder / SHARD, 1000), "train, record 0: .*Delete the folder"),
        (lambda folder: os.truncate(folder / SHARD, 0), "train, record 0: .*Delete the folder"),
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
            png = io.BytesIO()
            Image.new("RGB", (5, 4), (i, 0, 0)).save(png, "PNG")
            yield i, {"image": io.BytesIO(png.getvalue()), "label": i}


def test_any_prepared_set(tmp_path):
    with pytest.raises(ValueError, match="pictures"):
        load_images("pictures", tmp_path)
    Pictures(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    loaded = load_images("pictures", tmp_path)
    assert (
        loaded.classes == 7 and loaded.train_x.shape == (6, 4, 5, 3) and loaded.test_x.shape == (3, 4, 5, 3)
    )
    np.testing.assert_array_equal(loaded.train_x[:, 3, 4, 0], loaded.train_y)


def test_sets_that_cannot_be_had(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"kmnist/3.0.1 is not in .* tfds build kmnist"):
        load_images("kmnist", tmp_path)
    with pytest.raises(ValueError, match=r"imagenet2012: only images of one size"):
        load_images("imagenet2012", tmp_path)


def test_mocked_set(tmp_path):
    with tfds.testing.mock_data(num_examples=7, data_dir=tmp_path):
        loaded = load_images("cifar100", tmp_path)
    assert loaded.train_x.shape == (7, 32, 32, 3) and loaded.classes == 100
