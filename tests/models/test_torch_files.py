"""Files of weights that are not to be trusted: what runs code, lies about its arrays, or is damaged."""

import io
import os
import pickle
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest

from sltt_jax.models.torch_weights import read_checkpoint


def archive(path, content: bytes, compression=zipfile.ZIP_STORED, **entries: bytes):
    """A `.pth` with this pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("x/data.pkl", content)
        for name, value in entries.items():
            file.writestr(f"x/{name}", value)
    return path


class Call:
    """Pickles to a call of a function."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced

    def __call__(self):
        """A call may be of what another one returns."""
        raise NotImplementedError


PAYLOADS = {
    "(posix|nt).mkdir": lambda path: Call(os.mkdir, path),
    "(builtins|__builtin__).eval": lambda path: Call(eval, f"__import__('os').mkdir({path!r})"),
    # Calls the result of a call, in a container that is allowed.
    "functools.partial": lambda path: OrderedDict(w=Call(Call(partial, os.mkdir, path))),
}


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("name", PAYLOADS)
def test_nothing_is_executed(name, protocol, tmp_path):
    victim = tmp_path / "victim"
    content = pickle.dumps({"net": PAYLOADS[name](str(victim))}, protocol)
    path = archive(tmp_path / "x.pth", content)
    with pytest.raises(ValueError, match=rf"x\.pth names {name}, which is neither a tensor nor a plain"):
        read_checkpoint(path)
    assert not victim.exists()
    # The payload is live.
    pickle.loads(content)
    assert victim.exists()


def rebuilt(change: bytes) -> bytes:
    """A pickle that changes the function that rebuilds tensors, and whatever else it is given."""
    function = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return b"\x80\x02}X\x01\x00\x00\x00w" + function + change + b"s."


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(b"N}X\x0c\x00\x00\x00__defaults__K\x01\x85s\x86b", id="attribute of the function"),
        pytest.param(b"}X\x08\x00\x00\x00__dict__}sb", id="dict of the function"),
        pytest.param(b"0ccollections\nOrderedDict\nN}X\x05\x00\x00\x00itemsNs\x86b", id="class of the dict"),
        pytest.param(b"0ctorch\nFloatStorage\nN}X\x05\x00\x00\x00dtypeNs\x86b", id="storage type"),
    ],
)
def test_a_file_cannot_change_the_reader(change, tmp_path):
    with pytest.raises(ValueError, match=r"x\.pth is not a checkpoint, or damaged"):
        read_checkpoint(archive(tmp_path / "x.pth", rebuilt(change)))
    good = tensor_archive(tmp_path / "y.pth")
    np.testing.assert_array_equal(read_checkpoint(good)["w"], np.arange(6, dtype=np.float32).reshape(2, 3))


class Storage:
    """Pickles as a storage of six float32 numbers, "0"."""

    def __init__(self, key="0", size=6):
        self.pid = ("storage", FloatStorage, key, "cpu", size)


class FloatStorage:
    """Stands in for torch.FloatStorage where there is no torch."""


class Rebuild:
    """Stands in for torch._utils._rebuild_tensor_v2."""


class Pickler(pickle._Pickler):
    """Writes tensors by their names in torch, without it."""

    def persistent_id(self, obj):
        return getattr(obj, "pid", None)

    def save_global(self, obj, name=None):
        known = {FloatStorage: "torch\nFloatStorage", Rebuild: "torch._utils\n_rebuild_tensor_v2"}
        if obj in known:
            self.write(pickle.GLOBAL + known[obj].encode() + b"\n")
        else:
            super().save_global(obj, name)

    dispatch = {**pickle._Pickler.dispatch, type: save_global}  # noqa: RUF012


def tensor_archive(path, storage=None, offset=0, shape=(2, 3), strides=(3, 1), **entries):
    """A `.pth` with a float32 tensor "w", as torch would write it where the arguments make sense."""
    tensor = Call(Rebuild, storage or Storage(), offset, shape, strides, False, OrderedDict())
    Pickler(content := io.BytesIO(), 2).dump({"w": tensor})
    numbers = np.arange(6, dtype=np.float32).tobytes()
    return archive(path, content.getvalue(), **{"data/0": numbers, "byteorder": b"little", **entries})


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": (2**70, 3)},
        {"shape": (1,) * 65, "strides": (1,) * 65},
        {"strides": (2**70, 1)},
        {"storage": Storage(key=("0",))},
        {"storage": Storage(size=6.0)},
        {"offset": 1},
        {"offset": -1},
        {"shape": (3, 3)},
        {"shape": (2, 3, 1)},
        {"strides": (4, 1)},
        {"strides": (-3, 1)},
        {"shape": (10**6, 10**6), "strides": (0, 0)},
        {"shape": "abc"},
        {"shape": (2.0, 3)},
        {"storage": Storage(size=7)},
        {"storage": Storage(size=5)},
        {"storage": Storage(key="../0")},
        {"storage": Storage(key="1")},
        {"storage": "0"},
        {"byteorder": b"big"},
        {"data/0": b""},
    ],
)
def test_tensors_beyond_their_storage_are_refused(wrong, tmp_path):
    with pytest.raises(ValueError, match=r"x\.pth is not a checkpoint, or damaged"):
        read_checkpoint(tensor_archive(tmp_path / "x.pth", **wrong))


U = b"\x8c\x01w"  # a string, "w"
TWICE = b"q\x000h\x00h\x00\x86"  # a pair of twice what is on the stack
NESTED = {
    "as a value": b"}" + U + b")" + b"\x85" * (2 * 10**5) + b"s.",
    "as a key": b"}" + b")" + b"\x85" * (2 * 10**5) + U + b"s.",
    "in lists": b"}" + U + b"]" * 10**5 + b"a" * (10**5 - 1) + b"s.",
    "exponential key": b"}" + b")" + TWICE * 60 + U + b"s.",
    "exponential value": b"}" + U + b")" + TWICE * 60 + b"s.",
    "exponential name": b"})" + TWICE * 60 + b"\x93.",
    "exponential size": b"}" + U + b"ctorch\nFloatStorage\n)" + TWICE * 60 + b"Q.",
    "exponential set": b"\x8f()" + TWICE * 60 + b"\x90.",
    "long integer as a key": b"}\x8b" + struct.pack("<i", 10**6) + b"\1" * 10**6 + U + b"s.",
    "far memo": b"}r\x00\x00\x00\x10.",
    "long bytes": b"\x8e" + struct.pack("<Q", 2**32) + b".",
    "long byte array": b"\x96" + struct.pack("<Q", 2**32) + b".",
    "long text": b"\x8d" + struct.pack("<Q", 2**62) + b".",
    "long frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".",
    "copies of a list": b"]("
    + b"N" * 10**4
    + b"eq\x000"
    + b"ccollections\nOrderedDict\nh\x00\x85R0" * 100
    + b"}.",
    "out of nothing": b"u.",
    "no mark": b"}))t.",
}


@pytest.mark.parametrize("name", NESTED)
def test_time_and_memory_are_bounded_by_the_file(name, tmp_path):
    """The unpickler of the standard library crashes, takes gigabytes or does not come back."""
    path = archive(tmp_path / "x.pth", b"\x80\x02" + NESTED[name])
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(ValueError, match=r"x\.pth is not a checkpoint, or damaged"):
            read_checkpoint(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200 * path.stat().st_size + 10**6
    assert time.process_time() - start < 60


def test_a_storage_of_many_tensors_is_read_once(tmp_path, monkeypatch):
    tensors = {str(i): Call(Rebuild, Storage(), i % 3, (3,), (1,), False, OrderedDict()) for i in range(400)}
    Pickler(content := io.BytesIO(), 2).dump(tensors)
    numbers = np.arange(6, dtype=np.float32)
    path = archive(tmp_path / "x.pth", content.getvalue(), **{"data/0": numbers.tobytes()})
    names, read = [], zipfile.ZipFile.read
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda self, name: names.append(name) or read(self, name))
    loaded = read_checkpoint(path)
    assert sorted(names) == ["x/data.pkl", "x/data/0"]
    for i in range(400):
        np.testing.assert_array_equal(loaded[str(i)], numbers[i % 3 :][:3])
        assert np.shares_memory(loaded[str(i)], loaded["2"])


def test_parts_larger_than_the_file_are_refused(tmp_path):
    path = tensor_archive(tmp_path / "x.pth")
    data = bytearray(path.read_bytes())
    entry = data.index(b"x/data/0", data.index(b"PK\x01\x02")) - 46
    data[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"x\.pth is not .* its parts have 2147\d+ bytes, the file \d+"):
        read_checkpoint(path)


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_plain_values_beside_the_state_dict(tmp_path, protocol):
    rest = {"a": (1, 2, 3, 4), "b": [[], {}, ()], 5: 2**80, None: True, "c": -1.5}
    if protocol >= 4:  # before, they are calls of functions
        rest |= {"d": {1, 2}, "e": frozenset([3]), "f": b"\0"}
    tensor = Call(Rebuild, Storage(), 0, (2, 3), (3, 1), False, OrderedDict(x=1))
    Pickler(content := io.BytesIO(), protocol).dump({**rest, "net": OrderedDict(w=tensor)})
    path = archive(tmp_path / "x.pth", content.getvalue(), **{"data/0": bytes(24)})
    np.testing.assert_array_equal(read_checkpoint(path)["w"], np.zeros((2, 3), np.float32))


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "x.pth"
    whole = tensor_archive(path).read_bytes()
    numbers = whole.index(np.arange(6, dtype=np.float32).tobytes())
    flipped = whole[:numbers] + bytes([whole[numbers] ^ 1]) + whole[numbers + 1 :]
    cuts = [whole[:n] for n in (0, 1, 10, len(whole) // 2, len(whole) - 1)]
    for content in (*cuts, flipped, b"\0" * 100, pickle.dumps({"w": 1})):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.pth is not a checkpoint, or damaged"):
            read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("weights.txt", b"1 2 3")
    with pytest.raises(ValueError, match="damaged"):
        read_checkpoint(path)
    for content in (
        b"",
        b"\x80\x02}",
        pickle.dumps([1]),
        pickle.dumps({}),
        pickle.dumps({"net": {"w": 1.0}}),
    ):
        with pytest.raises(ValueError, match="damaged"):
            read_checkpoint(archive(path, content))
    with pytest.raises(ValueError, match="compressed"):
        read_checkpoint(archive(path, pickle.dumps({}), zipfile.ZIP_DEFLATED))


def test_missing_files_are_missing(tmp_path):
    for path in (tmp_path / "x.pth", tmp_path / "x.safetensors", tmp_path):
        with pytest.raises(OSError):
            read_checkpoint(path)


def test_pickled_network_and_old_format_are_refused(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is an optional development dependency")
    from tests.common import torch_nets

    net = torch_nets.ResNet(blocks=(2, 1), classes=5, width=1 / 16, channels=3, neuron={"tau": 1.5})
    torch.save({"net": net}, tmp_path / "x.pth")
    with pytest.raises(
        ValueError,
        match=r"names tests\.common\.torch_nets\.ResNet, .* its \.state_dict\(\) should have been",
    ):
        read_checkpoint(tmp_path / "x.pth")
    torch.save(net.state_dict(), tmp_path / "y.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"y\.pth has the format before PyTorch 1.6; save it again"):
        read_checkpoint(tmp_path / "y.pth")


def test_torch_is_not_imported():
    code = "import sys, sltt_jax.models.torch_weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="only Unix has FIFOs in folders")
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_fifo_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(path := tmp_path / name)
    with pytest.raises(ValueError, match=f"{path}: not a regular file"):
        read_checkpoint(path)
