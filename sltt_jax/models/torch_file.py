"""Reads the state dict of a PyTorch checkpoint, without PyTorch.

A `.pth` file is a zip archive of raw numbers beside a pickle, and a pickle is a program. It is run here by an
unpickler that knows nothing but tensors and dicts and builds neither of PyTorch's: a tensor becomes a
description of where its numbers lie, and any other name in the file is refused.
"""

import math
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

# Where checkpoints of the authors, of torchvision and of most others keep the state dict.
_STATE_DICT_KEYS = ("net", "state_dict", "model")

# The first bytes of a file of PyTorch < 1.6: the pickle of a number.
_LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")

_RESAVE = 'torch.save(torch.load(path, map_location="cpu")["net"], new_path)'


class _StorageType(NamedTuple):
    dtype: Any


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    size: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Dict(dict):
    """Stands in for OrderedDict; the attributes that a pickle would set on it are dropped."""

    def __setstate__(self, state):
        del state


class _Refused(ValueError):
    """Name in a pickle that is neither a tensor nor a dict."""


_STORAGES = {
    f"{name}Storage": _StorageType(dtype)
    for name, dtype in {
        "Double": np.float64, "Float": np.float32, "Half": np.float16, "BFloat16": jnp.bfloat16,
        "Long": np.int64, "Int": np.int32, "Short": np.int16, "Char": np.int8, "Byte": np.uint8,
        "Bool": np.bool_,
    }.items()
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        """Finds what a pickle calls by this name: always ours, not PyTorch's nor the standard library's."""
        match module, name:
            case "collections", "OrderedDict":
                return _Dict
            # A pickle can set attributes of what it gets, so these functions are its own.
            case "torch._utils", "_rebuild_tensor_v2":
                return lambda storage, offset, shape, strides, *_: _Tensor(storage, offset, shape, strides)
            case "torch._utils", "_rebuild_parameter":
                return lambda tensor, *_: tensor
            case "torch", storage if storage in _STORAGES:
                return _STORAGES[storage]
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid):
        kind, storage_type, key, _location, size = pid
        if kind != "storage" or not isinstance(storage_type, _StorageType):
            raise pickle.UnpicklingError(f"unknown persistent object {kind!r}")
        return _Storage(np.dtype(storage_type.dtype), key, size)


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the state dict in a file, as arrays of the file's dtypes.

    Args:
      path: a `.pth` file of PyTorch >= 1.6, which holds a state dict or a dict with one under "net" (the SLTT
        authors' code), "state_dict" or "model"; or a `.safetensors` file, for which the package safetensors
        must be installed.

    Returns:
      Arrays by name, in PyTorch's layouts.

    Raises:
      OSError: there is no such file, or it cannot be read.
      ValueError: the file is none of these, damaged, of the format before PyTorch 1.6, holds anything but
        tensors, numbers, strings and containers (nothing of the file is executed), or has no state dict.
      ImportError: safetensors is not installed.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    with path.open("rb") as file:
        start = file.read(len(_LEGACY_MAGIC))
    if start == _LEGACY_MAGIC:
        raise ValueError(f"{path} has the format before PyTorch 1.6; save it again: {_RESAVE}")
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive)
    except _Refused as e:
        raise ValueError(
            f"{path} names {e}, which is neither a tensor nor a plain container; nothing was loaded. If the "
            f"file can be trusted, save its state dict alone: {_RESAVE}"
        ) from None
    # A pickle of arbitrary bytes can raise nearly anything.
    except Exception as e:
        raise ValueError(f"{path} is not a checkpoint, or damaged ({type(e).__name__}: {e})") from e


def _read_safetensors(path):
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as e:
        raise ImportError(f"{path} needs the package safetensors (pip install safetensors)") from e
    try:
        return load_file(path)
    except SafetensorError as e:
        raise ValueError(f"{path} is not a safetensors file, or damaged ({e})") from e


def _read_archive(archive):
    (index,) = (name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"])
    root = index.removesuffix("data.pkl")
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise ValueError("it is compressed, which PyTorch does not do")
    if f"{root}byteorder" in archive.namelist():
        order = archive.read(f"{root}byteorder").decode()
        if order != sys.byteorder:
            raise ValueError(f"its numbers are {order} endian")
    with archive.open(index) as file:
        content = _Unpickler(file).load()
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}, not a state dict")
    found = next((content[k] for k in _STATE_DICT_KEYS if isinstance(content.get(k), dict)), content)
    wrong = [name for name, x in found.items() if not (isinstance(name, str) and isinstance(x, _Tensor))]
    if wrong or not found:
        raise ValueError(f"it holds no state dict; its keys are {list(content)[:10]}")
    return {name: _array(archive, root, tensor) for name, tensor in found.items()}


def _array(archive, root, tensor):
    """Numbers of a tensor; nothing that the pickle says of it is believed."""
    dtype, key, size = tensor.storage
    raw = archive.read(f"{root}data/{key}")
    counts = [size, tensor.offset, *tensor.shape, *tensor.strides]
    if not all(isinstance(n, int) and n >= 0 for n in counts) or len(tensor.shape) != len(tensor.strides):
        raise ValueError(f"storage {key} is used with sizes {counts}")
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    count = math.prod(tensor.shape)
    if len(raw) != size * dtype.itemsize or count > size or (count and last >= size):
        raise ValueError(f"storage {key} of {len(raw)} bytes is too short or too long for its tensor")
    if not count:
        return np.zeros(tensor.shape, dtype)
    data = np.frombuffer(raw, dtype)[tensor.offset :]
    strides = [s * dtype.itemsize for s in tensor.strides]
    return np.lib.stride_tricks.as_strided(data, tensor.shape, strides).copy()
