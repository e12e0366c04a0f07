"""Files with seeded damage for every reader, each within bounds of time and memory: a script, see `main`.

A reader that hangs in C or takes all memory would take the tests with it, so it has a process of its own.
"""

import gzip
import io
import resource
import shutil
import signal
import sys
import tempfile
import warnings
import wave
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from tests.common.event_files import AEDAT3, aedat2_bytes, aedat3_packet, aedat4_bytes, nmnist_bytes

SECONDS = 10  # for one file of a few hundred bytes; what is read in a process of its own takes half of one
EXTREMES = [0, 1, 2**15 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]
MEGABYTES = 300  # more than before the first damaged file


class Reader(NamedTuple):
    """A whole file, and what reads it.

    Attributes:
      data: what is damaged.
      read: takes the path.
      wrap: makes the file of the data.
      name: of the file.
      said: what an error names, of the path.
    """

    data: bytes
    read: Callable[[Path], object]
    wrap: Callable[[bytes], bytes] = bytes
    name: str = "file"
    said: Callable[[Path], object] = str


def mutate(data, rng):
    """Damages 1 to 3 places."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at, n = int(rng.integers(len(data) + 1)), int(rng.integers(1, 9))
        match rng.integers(7):
            case 0:
                data[at : at + 1] = bytes([data[at] ^ 1 << rng.integers(8)]) if at < len(data) else b""
            case 1:
                extreme = EXTREMES[rng.integers(len(EXTREMES))].to_bytes(8, "big")[-n:]
                data[at : at + n] = extreme if rng.integers(2) else extreme[::-1]
            case 2:
                del data[at:]
            case 3:
                del data[at : at + n]
            case 4:
                data[at:at] = data[at : at + 8 * n]
            case 5:
                data[at : at + n] = rng.bytes(n)
            case _:
                other = int(rng.integers(len(data) + 1))
                data[at : at + n] = data[other : other + n]
        data = data or bytearray(1)
    return bytes(data)


def _npy(array):
    np.save(out := io.BytesIO(), array)
    return out.getvalue()


def _wav():
    with wave.open(out := io.BytesIO(), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(np.arange(100, dtype=np.int16).tobytes())
    return out.getvalue()


def _events():
    from sltt_jax.data.events import foreign
    from sltt_jax.data.events.files import read_aedat, read_gesture_npy, read_nmnist
    from sltt_jax.data.events.spoken_digits import read_wav

    foreign.PATIENCE = 5
    rows = [(10 * i, i, 2 * i, i % 2) for i in range(16)]
    aedat3 = AEDAT3 + aedat3_packet([(*row, 1) for row in rows]) + aedat3_packet([(200, 1, 2, 1, 1)])
    return {
        "nmnist": Reader(nmnist_bytes(rows), read_nmnist),
        "aedat2": Reader(aedat2_bytes(rows), read_aedat),
        "aedat3": Reader(aedat3, read_aedat),
        "aedat4": Reader(aedat4_bytes([(t, x, y, bool(p)) for t, x, y, p in rows]), read_aedat),
        "npy": Reader(_npy(np.array(rows, np.float64)[:, [1, 2, 3, 0]]), read_gesture_npy),
        "wav": Reader(_wav(), read_wav),
    }


def _listings():
    from sltt_jax.data.events.cameras import load_dvs_gesture

    def read(path):
        folder, head = path.parent, "class,startTime_usec,endTime_usec\n"
        rows = [(10 * i, i, i, 1, 1) for i in range(30)]
        whole = {"trials_to_train.txt": "a.aedat\n", "trials_to_test.txt": "b.aedat\n"}
        whole |= {f"{name}_labels.csv": f"{head}1,0,100\n2,100,300\n" for name in "ab"}
        for name, text in whole.items():
            if name != path.name:
                (folder / name).write_text(text)
        for name in "ab":
            (folder / f"{name}.aedat").write_bytes(AEDAT3 + aedat3_packet(rows))
        try:
            load_dvs_gesture(folder, steps=2, size=8)
        except OSError as error:  # there is no recording of another name
            raise ValueError(str(path)) from error

    csv = b"class,startTime_usec,endTime_usec\n1,0,100\n2,100,300\n"
    return {
        "trials": Reader(b"a.aedat\n", read, name="trials_to_train.txt"),
        "labels": Reader(csv, read, name="a_labels.csv"),
    }


def _hdf5():
    import h5py

    from sltt_jax.data.events import foreign, shd

    foreign.PATIENCE = 5
    with h5py.File(out := io.BytesIO(), "w") as file:
        for name, kind in (("times", np.float16), ("units", np.uint16)):
            rows = file.create_dataset(f"spikes/{name}", (3,), h5py.vlen_dtype(kind), chunks=(2,))
            for i in range(3):
                rows[i] = (np.arange(4) / 4 if name == "times" else np.arange(4)).astype(kind)
        file["labels"] = np.arange(3, dtype=np.uint16)

    def read(path):
        (path.parent / "shd_test.h5").write_bytes(out.getvalue())
        shd.load_shd(path.parent, steps=2, channels=7)

    return {"hdf5": Reader(out.getvalue(), read, name="shd_train.h5")}


def _graphs():
    import nir

    from sltt_jax.data.events import foreign
    from sltt_jax.nir import model_from_nir

    foreign.PATIENCE = 5
    ones = np.ones(4)
    nodes = (
        nir.Affine(np.ones((4, 3), np.float32), ones),
        nir.LIF(3e-4 * ones, ones, 0 * ones, ones, 0 * ones),
    )
    with tempfile.TemporaryDirectory() as folder:
        nir.write(path := Path(folder, "net.nir"), nir.NIRGraph.from_list(*nodes), compression=None)
        data = path.read_bytes()
    return {"nir": Reader(data, model_from_nir, name="net.nir")}


def _matlab():
    from scipy.io import savemat

    from sltt_jax.data.events import foreign
    from sltt_jax.data.events.qtdb import load_qtdb

    foreign.PATIENCE = 5
    rng = np.random.default_rng(0)
    x, y = rng.integers(-1, 2, (3, 8, 4)).astype(np.int16), rng.integers(0, 6, (3, 8))
    savemat(out := io.BytesIO(), {"x": x, "y": np.eye(6, dtype=np.uint8)[y]})

    def read(path):
        (path.parent / "QTDB_test.mat").write_bytes(out.getvalue())
        load_qtdb(path.parent, steps=8)

    return {"matlab": Reader(out.getvalue(), read, name="QTDB_train.mat")}


def _archives():
    from sltt_jax.data.images import tfds_builders
    from tests.common.photographs import encoded, ramp, tar

    def split(name):
        info = SimpleNamespace(features={"label": SimpleNamespace(names=["n01440764"])})
        tfds_builders.PUBLISHED["imagenet2012"] = {"train": 2, "validation": 2}

        def read(path):
            data_path = path.parent / "1.0.0"
            builder = SimpleNamespace(name="imagenet2012", info=info, data_path=data_path)
            list(tfds_builders.imagenet_splits(builder, None)[name])

        return read

    jpeg = encoded(ramp(40, 30))
    train = tar({"n01440764.tar": tar({"a.JPEG": jpeg, "b.JPEG": jpeg})})
    validation = tar({f"ILSVRC2012_val_0000000{i}.JPEG": jpeg for i in (1, 2)})
    return {
        "imagenet train": Reader(train, split("train"), name="ILSVRC2012_img_train.tar"),
        "imagenet validation": Reader(validation, split("validation"), name="ILSVRC2012_img_val.tar"),
    }


def _images():
    from sltt_jax.data.images import tfds_builders
    from sltt_jax.data.images.imagenet import evaluation_batches
    from tests.common.official_files import idx
    from tests.common.photographs import encoded, ramp, tar

    def photograph(path):
        record = {"image": path.read_bytes(), "label": 0, "file_name": str(path).encode()}
        next(evaluation_batches([record], 1))

    members = {"a.bin": bytes(3073), "b.bin": bytes(3073)}
    read_members = lambda path: [
        tfds_builders.read_cifar(data, 1, str(path))
        for data in tfds_builders.read_members(path, list(members))
    ]
    array = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    return {
        "idx": Reader(idx(array), tfds_builders.read_idx),
        "idx packed": Reader(idx(array), tfds_builders.read_idx, gzip.compress),
        "idx gzip": Reader(gzip.compress(idx(array)), tfds_builders.read_idx),
        "cifar": Reader(tar(members), read_members, gzip.compress),
        "cifar gzip": Reader(gzip.compress(tar(members)), read_members),
        "jpeg": Reader(encoded(ramp(40, 30)), photograph),
        "png": Reader(encoded(ramp(40, 30), "PNG"), photograph),
    }


def _weights():
    import torch
    from safetensors.numpy import save

    from sltt_jax.models.torch_file import read_checkpoint

    arrays = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.arange(3)}
    torch.save({"net": OrderedDict(arrays), "epoch": 3}, out := io.BytesIO())
    with zipfile.ZipFile(out) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    (index,) = (name for name in parts if name.endswith("data.pkl"))

    def packed(pickle):
        with zipfile.ZipFile(result := io.BytesIO(), "w") as file:
            for name, data in (parts | {index: pickle}).items():
                file.writestr(name, data)
        return result.getvalue()

    tensors = {name: x.numpy() for name, x in arrays.items()}
    return {
        "pth": Reader(out.getvalue(), read_checkpoint),
        "pickle": Reader(parts[index], read_checkpoint, packed),
        "safetensors": Reader(save(tensors), read_checkpoint, name="file.safetensors"),
    }


def _prepared():
    from sltt_jax.data.cache import cached
    from sltt_jax.data.images import tfds_builders, tfds_sets
    from tests.common.official_files import SIZES, official_files, random_set, write

    root = tempfile.TemporaryDirectory()  # there as long as what reads from it
    folder = Path(root.name)
    tfds_builders.PUBLISHED["mnist"] = SIZES
    write(folder / "mnist", official_files("mnist", random_set("mnist")))
    tfds_sets.load_images("mnist", folder)
    (shard,) = folder.glob("mnist/*/*-train.array_record*")
    (kept,) = folder.glob("decoded/*.npz")

    def read_shard(path):
        for other in Path(root.name, shard.parent).iterdir():
            if other.name != path.name:
                shutil.copy(other, path.parent)
        tfds_sets.load_images("mnist", path.parents[2])

    def read_kept(path):
        with np.load(kept) as whole, warnings.catch_warnings(action="error"):
            try:
                cached(path.parent, "set", {}, root.name, [], lambda: dict(whole), 10)
            except UserWarning as error:  # a damaged one is reported, and made again
                raise ValueError(str(error)) from error

    cached(folder / "again", "set", {}, folder, [], lambda: dict(np.load(kept)), 10)
    (entry,) = (folder / "again").iterdir()
    return {
        "shard": Reader(
            shard.read_bytes(), read_shard, name=str(shard.relative_to(folder)), said=lambda p: p.parent
        ),
        "cache": Reader(entry.read_bytes(), read_kept, name=entry.name),
    }


def main(group: str, name: str, folder: str, count: str, seed: str) -> None:
    """Reads a whole file, then `count` damaged ones: every error is a ValueError that names the file."""
    reader = globals()[f"_{group}"]()[name]
    path = Path(folder) / reader.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(reader.wrap(reader.data))
    reader.read(path)
    before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    rng = np.random.default_rng(int(seed))
    for i in range(int(count)):
        path.write_bytes(reader.wrap(mutate(reader.data, rng)))
        signal.alarm(SECONDS)  # kills the process, whatever C is at
        try:
            reader.read(path)
        except ValueError as error:
            refused += 1
            assert str(reader.said(path)) in str(error), f"file {i}: {error}"
        signal.alarm(0)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        assert grown < MEGABYTES, f"file {i} took {grown:.0f} MB"
    print(f"refused {refused}")


if __name__ == "__main__":
    main(*sys.argv[1:])
