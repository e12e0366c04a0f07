"""Files of weights that are not to be trusted: what runs code, lies about its arrays, or is damaged."""

import io
import os
import pickle
import subprocess
import sys
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
        match=r"names tests\.common\.torch_nets\.ResNet, .* save its state dict alone: torch\.save",
    ):
        read_checkpoint(tmp_path / "x.pth")
    torch.save(net.state_dict(), tmp_path / "y.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"y\.pth has the format before PyTorch 1.6; save it again"):
        read_checkpoint(tmp_path / "y.pth")


def test_torch_is_not_imported():
    code = "import sys, sltt_jax.models.torch_weights; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
