"""Image sets from official files, written here byte by byte, through TFDS and back."""

import gzip
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums, download_manager, downloader

from sltt_jax.damage import DamagedFile
from sltt_jax.data.images import tfds_builders, tfds_sets
from sltt_jax.data.images.tfds_sets import load_images
from tests.common.official_files import (
    CLASSES,
    SIZES,
    assert_same_set,
    idx,
    official_files,
    random_set,
    tar_gz,
    write,
)


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
        ("mnist", IMAGES, lambda data: b"", "not a whole idx file of unsigned bytes"),
        ("mnist", IMAGES, lambda data: data[:-100], "not a whole idx file"),
        (
            "mnist",
            IMAGES,
            gz(lambda data: data[:-1]),
            r"the header says \(10, 28, 28\), but 7839 bytes follow",
        ),
        ("mnist", IMAGES, gz(lambda data: data[:15]), "not a whole idx file"),
        ("mnist", IMAGES, gz(lambda data: b"\0\0\x0d" + data[3:]), "begins with '00 00 0d 03'"),
        ("mnist", IMAGES, gz(lambda data: b"\0\0\x08\xff" + bytes([1]) * 1020), "bytes follow"),
        # 200 KB that unpack to 201 MB.
        ("mnist", IMAGES, lambda data: gzip.compress(bytes(201_000_000)), "more than 200,000,000 bytes"),
        ("mnist", IMAGES, lambda data: b"<html>not found</html>", "begins with '3c 68 74 6d'"),
        ("mnist", IMAGES, lambda data: idx(np.zeros((9, 28, 28), np.uint8)), r"9 images, labels \(10,\)"),
        ("mnist", IMAGES, lambda data: idx(np.zeros((10, 28, 27), np.uint8)), r"\(10, 28, 27\)"),
        (
            "mnist",
            LABELS,
            lambda data: idx(np.array([0, 1, 10, 3, 4], np.uint8)),
            "label 10 of image 2 .* 0..9",
        ),
        ("cifar10", BATCH, lambda data: data[:-1], "not a whole number of records of 3073 bytes: 6145 bytes"),
        ("cifar10", BATCH, lambda data: b"", "0 bytes"),
        ("cifar10", BATCH, lambda data: data[:3073], "1 images, the published set has 2"),
        ("cifar10", BATCH, lambda data: b"\x0a" + data[1:], "label 10 of image 0 is outside 0..9"),
        ("cifar10", "cifar-10-batches-bin/batches.meta.txt", lambda data: data[8:], "Got 9 names VS 10"),
        ("cifar10", "cifar-10-batches-bin/batches.meta.txt", lambda data: b"\xff", "not a list of classes"),
    ],
)
def test_bad_official_file(name, file, change, message, tmp_path):
    write(tmp_path / name, changed(name, file, change))
    with pytest.raises(ValueError, match=f"(?s){Path(file).name}.*{message}"):
        load_images(name, tmp_path)
    # Nothing half prepared is left behind, and the good file is taken next.
    write(tmp_path / name, official_files(name, random_set(name)))
    assert len(load_images(name, tmp_path).train_x) == SIZES["train"]


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
    link = tarfile.TarInfo("data_batch_1.bin")
    link.type, link.linkname = tarfile.LNKTYPE, "nothing"
    with tarfile.open(tmp_path / "cifar10/cifar-10-binary.tar.gz", "w:gz") as tar:
        tar.addfile(link)
    with pytest.raises(DamagedFile, match=r"tar.gz: .* data_batch_1.bin is not a whole, plain file"):
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
        # What takes no time at all can end while the package promise is still being told what to do then.
        time.sleep(0.1)
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
        load_images(name, tmp_path, download=True)

    for url, content in site.items():
        path = tmp_path / "file"
        path.write_bytes(content)
        known[url] = checksums.compute_url_info(path)
    monkeypatch.setattr(checksums, "get_all_url_infos", lambda: known)
    loaded = load_images(name, tmp_path, download=True)
    assert_same_set(loaded.train_x, loaded.train_y, data["train"])


def test_unreachable_site(site, tmp_path):
    with pytest.raises(ConnectionError) as error:
        load_images("cifar10", tmp_path, download=True)
    for part in (
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        str(tmp_path / "cifar10"),
        "no route",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("folder", ["mistyped", "."])
def test_nothing_is_downloaded_without_being_asked_for(folder, site, tmp_path):
    """Nor is a directory made where there is none."""
    with pytest.raises(FileNotFoundError, match="mnist: there is no "):
        load_images("mnist", tmp_path / folder)
    assert not (tmp_path / "mistyped").exists()
