"""Reads the state dict of a PyTorch checkpoint, without PyTorch.

A `.pth` file is a zip archive of raw numbers beside a pickle. Nothing of the pickle is run, and nothing that
it says is believed: memory and time are bounded by the size of the file.
"""

import math
import sys
import zipfile
from pathlib import Path

import numpy as np

from sltt_jax.damage import check_is_file
from sltt_jax.models import torch_pickle
from sltt_jax.models.torch_pickle import Storage, Tensor

# Where checkpoints of the authors, of torchvision and of most others keep the state dict.
_STATE_DICT_KEYS = ("net", "state_dict", "model")

# The first bytes of a file of PyTorch < 1.6: the pickle of a number.
_LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")


def read_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the state dict in a file, as arrays of the file's dtypes.

    Args:
      path: a `.pth` file of PyTorch >= 1.6, which holds a state dict or a dict with one under "net" (the SLTT
        authors' code), "state_dict" or "model"; or a `.safetensors` file, for which the package safetensors
        must be installed.

    Returns:
      Arrays by name, in PyTorch's layouts; tensors that share numbers in the file share memory.

    Raises:
      OSError: there is no such file, or it cannot be read.
      ValueError: the file is none of these, damaged, a FIFO, of the format before PyTorch 1.6, holds anything
        but tensors, numbers, strings and containers (nothing of the file is executed), or has no state dict.
      ImportError: safetensors is not installed.
    """
    path = Path(path)
    check_is_file(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    with path.open("rb") as file:
        start = file.read(len(_LEGACY_MAGIC))
    if start == _LEGACY_MAGIC:
        raise ValueError(
            f"{path} has the format before PyTorch 1.6; save it again: "
            'torch.save(torch.load(path, map_location="cpu"), new_path)'
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return _read_archive(archive, path.stat().st_size)
    except torch_pickle.Refused as e:
        raise ValueError(
            f"{path} names {e}, which is neither a tensor nor a plain container; nothing was loaded. A whole "
            "model was saved where its .state_dict() should have been. If the file can be trusted: model = "
            'torch.load(path, map_location="cpu", weights_only=False); '
            "torch.save(model.state_dict(), new_path)"
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
    # Types that NumPy does not have are a KeyError.
    except (SafetensorError, KeyError, ValueError) as e:
        raise ValueError(f"{path} is not a safetensors file, or damaged ({e})") from e


def _read_archive(archive, size):
    (index,) = (name for name in archive.namelist() if name.split("/")[1:] == ["data.pkl"])
    root = index.removesuffix("data.pkl")
    if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
        raise ValueError("it is compressed, which PyTorch does not do")
    if (total := sum(info.file_size for info in archive.infolist())) > size:
        raise ValueError(f"its parts have {total} bytes, the file {size}")
    if f"{root}byteorder" in archive.namelist():
        order = archive.read(f"{root}byteorder").decode()
        if order != sys.byteorder:
            raise ValueError(f"its numbers are {order} endian")
    content = torch_pickle.load(archive.read(index))
    if type(content) is not dict:
        raise ValueError(f"it holds a {type(content).__name__}, not a state dict")
    found = next((content[k] for k in _STATE_DICT_KEYS if type(content.get(k)) is dict), content)
    wrong = [name for name, x in found.items() if not (isinstance(name, str) and isinstance(x, Tensor))]
    if wrong or not found:
        raise ValueError(f"it holds no state dict; its keys are {list(content)[:10]}")
    raw = {}
    return {name: _array(archive, root, tensor, raw) for name, tensor in found.items()}


def _array(archive, root, tensor, raw):
    """Numbers of a tensor; `raw` keeps those of the storages that have been read."""
    if type(tensor.storage) is not Storage or type(tensor.storage.key) is not str:
        raise ValueError("a tensor has no storage")
    dtype, key, size = tensor.storage
    for sizes in (tensor.shape, tensor.strides):
        if type(sizes) is not tuple or len(sizes) > 64:
            raise ValueError(
                f"the shape or strides of a tensor in storage {key} are a {type(sizes).__name__}"
            )
    counts = [size, tensor.offset, *tensor.shape, *tensor.strides]
    if not all(type(n) is int and 0 <= n < 2**63 for n in counts) or len(tensor.shape) != len(tensor.strides):
        raise ValueError(f"storage {key} is used with sizes that are none")
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    count = math.prod(tensor.shape)
    if key not in raw:
        raw[key] = bytearray(archive.read(f"{root}data/{key}"))
    if len(raw[key]) != size * dtype.itemsize or count > size or (count and last >= size):
        raise ValueError(f"storage {key} of {len(raw[key])} bytes is too short or too long for its tensor")
    if not count:
        return np.zeros(tensor.shape, dtype)
    strides = [s * dtype.itemsize for s in tensor.strides]
    return np.ndarray(tensor.shape, dtype, raw[key], tensor.offset * dtype.itemsize, strides)
