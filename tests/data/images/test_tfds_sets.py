"""Image sets from official files, written here byte by byte, through TFDS and back."""

import gzip
import io
import json
import os
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.download import checksums, download_manager, downloader

from sltt_jax.data.images import tfds_builders, tfds_sets
from sltt_jax.data.images.tfds_sets import load_images

SIZES = {"train": 10, "test": 5}
RNG = np.random.default_rng(0)
CLASSES = {"mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}


@pytest.fixture(autouse=True)
def small_sets(monkeypatch):
    for name in CLASSES:
        monkeypatch.setitem(tfds_builders.PUBLISHED, name, SIZES)


def random_set(name):
    """Images `[N, H, W, C]` and labels `[N]` of both splits; every image is another."""
    shape = (28, 28, 1) if "mnist" in name else (32, 32, 3)
    return {
        split: (RNG.integers(0, 256, (n, *shape), np.uint8), RNG.integers(0, CLASSES[name], n, np.uint8))
        for split, n in SIZES.items()
    }


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def tar_gz(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def official_files(name, data):
    """The files of a set, as `{name: bytes}`."""
    if "mnist" in name:
        return {
            f"{prefix}-{kind}-ubyte.gz": gzip.compress(idx(array))
            for split, prefix in (("train", "train"), ("test", "t10k"))
            for kind, array in (("images-idx3", data[split][0][..., 0]), ("labels-idx1", data[split][1]))
        }
    coarse = (lambda y: [y // 5]) if name == "cifar100" else lambda y: []
    records = {
        split: b"".join(
            bytes([*coarse(y), y]) + x.transpose(2, 0, 1).tobytes() for x, y in zip(*arrays, strict=True)
        )
        for split, arrays in data.items()
    }
    names = lambda n: "".join(f"class_{i}\n" for i in range(n)).encode()
    if name == "cifar100":
        parts = {"train.bin": records["train"], "test.bin": records["test"]}
        parts |= {"fine_label_names.txt": names(100), "coarse_label_names.txt": names(20)}
        return {f"cifar-100-binary/{n}": part for n, part in parts.items()}
    fifth = len(records["train"]) // 5
    parts = {f"data_batch_{i + 1}.bin": records["train"][i * fifth :][:fifth] for i in range(5)}
    parts |= {"test_batch.bin": records["test"], "batches.meta.txt": names(10) + b"\n"}
    return {f"cifar-10-batches-bin/{n}": part for n, part in parts.items()}


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def assert_same_set(x, y, expected):
    """TFDS shuffles."""
    assert x.dtype == np.uint8 and y.dtype == np.int32
    pairs = lambda x, y: sorted((image.tobytes(), int(label)) for image, label in zip(x, y, strict=True))
    assert x.shape == expected[0].shape and pairs(x, y) == pairs(*expected)


@pytest.mark.parametrize("name", CLASSES)
def test_official_files_in_and_out(name, tmp_path, monkeypatch):
    data = random_set(name)
    write(tmp_path / name, official_files(name, data))
    loaded = load_images(name, tmp_path)
    assert loaded.classes == CLASSES[name]
    assert_same_set(loaded.train_x, loaded.train_y, data["train"])
    assert_same_set(loaded.test_x, loaded.test_y, data["test"])

    # What is on disk is the canonical set: TFDS itself reads it, under its name, version and features.
    canonical = tfds.builder(name, data_dir=tmp_path / "elsewhere").info
    source = tfds.data_source(name, split="test", data_dir=tmp_path)
    assert source.dataset_info.full_name == canonical.full_name
    assert repr(source.dataset_info.features) == repr(canonical.features)
    examples = [source[i] for i in range(len(source))]
    x, y = (np.array([example[key] for example in examples]) for key in ("image", "label"))
    assert_same_set(x, y.astype(np.int32), data["test"])
    if name == "cifar100":
        assert all(example["coarse_label"] == example["label"] // 5 for example in examples)
    if name.startswith("cifar"):
        assert {example["id"] for example in examples} == {b"test_%05d" % i for i in range(SIZES["test"])}
        # Names are stored, as by the canonical builder.
        assert source.dataset_info.features["label"].names[3] == "class_3"

    # The second start decodes nothing.
    monkeypatch.setattr(tfds_sets, "_records", None)
    again = load_images(name, tmp_path)
    np.testing.assert_array_equal(again.train_x, loaded.train_x)
    np.testing.assert_array_equal(again.test_y, loaded.test_y)


@pytest.mark.parametrize("folder", ["cifar10", "downloads/manual/cifar10"])
def test_archive_in_place_of_its_folder(folder, tmp_path):
    data = random_set("cifar10")
    write(tmp_path / folder, {"cifar-10-binary.tar.gz": tar_gz(official_files("cifar10", data))})
    loaded = load_images("cifar10", tmp_path)
    assert_same_set(loaded.train_x, loaded.train_y, data["train"])


def changed(name, file, change):
    files = official_files(name, random_set(name))
    return files | {file: change(files[file])}


gz = lambda change: lambda data: gzip.compress(change(gzip.decompress(data)))
IMAGES, LABELS = "train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
BATCH = "cifar-10-batches-bin/data_batch_2.bin"


@pytest.mark.parametrize(
    ("name", "file", "change", "message"),
    [
        ("mnist", IMAGES, lambda data: b"", "not an idx file of unsigned bytes"),
        ("mnist", IMAGES, lambda data: data[:-100], "not a whole gzip file"),
        (
            "mnist",
            IMAGES,
            gz(lambda data: data[:-1]),
            r"the header says \(10, 28, 28\), but 7839 bytes follow",
        ),
        ("mnist", IMAGES, gz(lambda data: data[:15]), "not a whole idx file"),
        ("mnist", IMAGES, gz(lambda data: b"\0\0\x0d" + data[3:]), "begins with '00 00 0d 03'"),
        ("mnist", IMAGES, lambda data: b"<html>not found</html>", "begins with '3c 68 74 6d'"),
        ("mnist", IMAGES, lambda data: idx(np.zeros((9, 28, 28), np.uint8)), r"9 images, labels \(10,\)"),
        ("mnist", IMAGES, lambda data: idx(np.zeros((10, 28, 27), np.uint8)), r"\(10, 28, 27\)"),
        (
            "mnist",
            LABELS,
            lambda data: idx(np.array([0, 1, 10, 3, 4], np.uint8)),
            "label 10 of image 2 .* 0..9",
        ),
        ("cifar10", BATCH, lambda data: data[:-1], "6145 bytes are not a whole number of records of 3073"),
        ("cifar10", BATCH, lambda data: b"", "0 bytes"),
        ("cifar10", BATCH, lambda data: data[:3073], "1 images, the published set has 2"),
        ("cifar10", BATCH, lambda data: b"\x0a" + data[1:], "label 10 of image 0 is outside 0..9"),
        ("cifar10", "cifar-10-batches-bin/batches.meta.txt", lambda data: data[8:], "Got 9 names VS 10"),
    ],
)
def test_bad_official_file(name, file, change, message, tmp_path):
    write(tmp_path / name, changed(name, file, change))
    with pytest.raises(ValueError, match=f"(?s){Path(file).name}.*{message}"):
        load_images(name, tmp_path)
    # Nothing half prepared is left behind, and the good file is taken next.
    write(tmp_path / name, official_files(name, random_set(name)))
    assert len(load_images(name, tmp_path).train_x) == SIZES["train"]


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


def test_too_few_images(tmp_path, monkeypatch):
    monkeypatch.setitem(tfds_builders.PUBLISHED, "mnist", {"train": 60_000, "test": 10_000})
    write(tmp_path / "mnist", official_files("mnist", random_set("mnist")))
    with pytest.raises(
        ValueError, match=r"train-images-idx3-ubyte.gz: 10 images, the published set has 60000"
    ):
        load_images("mnist", tmp_path)


def test_bad_archive(tmp_path):
    archive = tar_gz(official_files("cifar10", random_set("cifar10")))
    write(tmp_path / "cifar10", {"cifar-10-binary.tar.gz": archive[:-1000]})
    with pytest.raises(ValueError, match=r"cifar-10-binary.tar.gz: not a whole tar archive"):
        load_images("cifar10", tmp_path)
    write(tmp_path / "cifar10", {"cifar-10-batches-bin/batches.meta.txt": b"a b c d e f g h i j"})
    with pytest.raises(ValueError, match=r"cifar-10-batches-bin: has no data_batch_1.bin, data_batch_2.bin"):
        load_images("cifar10", tmp_path)


@pytest.fixture
def site(monkeypatch):
    """What the internet answers: `{url: bytes}`."""
    answers = {}

    def download(self, url, destination_path, verify=True):
        if url not in answers:
            raise requests.exceptions.ConnectionError("no route")
        path = destination_path / url.rsplit("/", 1)[-1]
        path.write_bytes(answers[url])
        return downloader.DownloadResult(path, checksums.compute_url_info(path))

    monkeypatch.setattr(downloader._Downloader, "_sync_download", download)
    return answers


@pytest.mark.parametrize("name", CLASSES)
def test_download_of_the_published_urls(name, site, tmp_path, monkeypatch):
    data = random_set(name)
    files = official_files(name, data)
    if name.startswith("cifar"):
        url = f"https://www.cs.toronto.edu/~kriz/cifar-{name[5:]}-binary.tar.gz"
        site[url] = tar_gz(files)
    else:
        bases = {
            "mnist": "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "fashion_mnist": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        }
        site.update({bases[name] + file: content for file, content in files.items()})
    known = dict(checksums.get_all_url_infos())
    assert set(site) <= set(known)

    # These are not the published bytes, and TFDS knows what those are.
    with pytest.raises(download_manager.NonMatchingChecksumError, match="has wrong checksum"):
        load_images(name, tmp_path)

    for url, content in site.items():
        path = tmp_path / "file"
        path.write_bytes(content)
        known[url] = checksums.compute_url_info(path)
    monkeypatch.setattr(checksums, "get_all_url_infos", lambda: known)
    loaded = load_images(name, tmp_path)
    assert_same_set(loaded.train_x, loaded.train_y, data["train"])


def test_unreachable_site(site, tmp_path):
    with pytest.raises(ConnectionError) as error:
        load_images("cifar10", tmp_path)
    for part in (
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        str(tmp_path / "cifar10"),
        "no route",
    ):
        assert part in str(error.value)


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
