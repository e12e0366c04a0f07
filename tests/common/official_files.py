"""Official files of image sets, small and random, written byte by byte."""

import gzip
import io
import struct
import tarfile

import numpy as np

SIZES = {"train": 10, "test": 5}
RNG = np.random.default_rng(0)
CLASSES = {"mnist": 10, "fashion_mnist": 10, "cifar10": 10, "cifar100": 100}


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
