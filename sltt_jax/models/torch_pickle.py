"""Reads a pickle of tensors, scalars and containers, without running it.

A pickle is a program, and the unpickler of the standard library lets a file of a few hundred bytes allocate
gigabytes, hash for years or overflow the stack. Here each instruction does work in proportion to its own
bytes: containers are built, but nothing of theirs is hashed, compared or copied; keys of dicts are scalars.
"""

import io
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np


class Storage(NamedTuple):
    """Numbers in a file of their own: their type, the name of the file, and how many they are."""

    dtype: np.dtype
    key: Any
    size: Any


class Tensor(NamedTuple):
    """Where the numbers of a tensor lie; nothing of it has been checked."""

    storage: Any
    offset: Any
    shape: Any
    strides: Any


class Refused(ValueError):
    """Name in a pickle that is neither a tensor nor a dict."""


class _StorageType(NamedTuple):
    dtype: Any


_STORAGES = {
    f"{name}Storage": _StorageType(dtype)
    for name, dtype in {
        "Double": np.float64, "Float": np.float32, "Half": np.float16, "BFloat16": jnp.bfloat16,
        "Long": np.int64, "Int": np.int32, "Short": np.int16, "Char": np.int8, "Byte": np.uint8,
        "Bool": np.bool_,
    }.items()
}  # fmt: skip

_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_MARKED = {"TUPLE": tuple, "LIST": list, "FROZENSET": tuple, "DICT": lambda items: _set({}, items)}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# The instructions whose argument is the value.
_SCALARS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE "
    "BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8".split()
)


def load(data: bytes) -> Any:
    """Returns the value of a pickle; sets are lists in it, and tensors are `Tensor`.

    Raises:
      Refused: a name stands for neither a tensor nor a dict.
      ValueError: the pickle is damaged, or does anything else. Damage can raise other errors, too.
    """
    stack, marks, memo = [], [], {}
    value: Any

    def marked():
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    for instruction, value, _ in pickletools.genops(io.BytesIO(data)):
        match instruction.name:
            case "PROTO" | "FRAME":
                pass
            case name if name in _SCALARS:
                stack.append(value)
            case name if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case name if name in _EMPTY:
                stack.append(_EMPTY[name]())
            case "MARK":
                marks.append(len(stack))
            case name if name in _MARKED:
                stack.append(_MARKED[name](marked()))
            case name if name in _TUPLES:
                stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "POP":
                stack.pop()
            case "POP_MARK":
                marked()
            case "APPEND":
                item = stack.pop()
                _list(stack[-1]).append(item)
            case "APPENDS" | "ADDITEMS":
                items = marked()
                _list(stack[-1]).extend(items)
            case "SETITEM":
                item = stack.pop()
                key = stack.pop()
                _set(stack[-1], [key, item])
            case "SETITEMS":
                items = marked()
                _set(stack[-1], items)
            case "GLOBAL":
                stack.append(_find(*value.split(" ", 1)))
            case "STACK_GLOBAL":
                name = stack.pop()
                stack.append(_find(stack.pop(), name))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_call(stack.pop(), arguments))
            case "BUILD":
                # An OrderedDict may have attributes, which are dropped.
                stack.pop()
                if type(stack[-1]) is not dict:
                    raise ValueError(f"it changes a {type(stack[-1]).__name__}")
            case "STOP":
                return stack.pop()
            case name:
                raise ValueError(f"the instruction {name} is none that PyTorch writes")
    raise ValueError("it does not end")


def _list(value):
    if type(value) is not list:
        raise ValueError(f"it appends to a {type(value).__name__}")
    return value


def _set(target, items):
    if type(target) is not dict:
        raise ValueError(f"it sets items of a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Tuples are hashed anew each time, as deep as they are, and so are long integers.
        if not (key is None or type(key) in (str, bool, float) or (type(key) is int and abs(key) < 2**63)):
            raise ValueError(f"a key of a dict is a {type(key).__name__}")
        target[key] = value
    return target


def _find(module, name):
    """Returns what stands for a name of PyTorch or the standard library: ours, not theirs."""
    if not (type(module) is str and type(name) is str):
        raise ValueError(f"a name is a {type(name).__name__} of a {type(module).__name__}")
    match module, name:
        case "collections", "OrderedDict":
            return dict
        case "torch._utils", "_rebuild_tensor_v2":
            return _tensor
        case "torch._utils", "_rebuild_parameter":
            return _parameter
        case "torch", storage if storage in _STORAGES:
            return _STORAGES[storage]
    raise Refused(f"{module}.{name}")


def _tensor(storage, offset, shape, strides, *_):
    return Tensor(storage, offset, shape, strides)


def _parameter(tensor, *_):
    return tensor


def _call(function, arguments):
    # OrderedDict has been called with nothing since Python 3; given a list, it would copy it.
    most = {dict: 0, _tensor: 8, _parameter: 4}
    known = next((f for f in most if f is function), None)
    if known is None or type(arguments) is not tuple or len(arguments) > most[known]:
        raise ValueError(f"it calls a {type(function).__name__} with a {type(arguments).__name__}")
    return known(*arguments)


def _storage(pid):
    if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage" or type(pid[1]) is not _StorageType:
        raise ValueError("a persistent object is no storage")
    return Storage(np.dtype(pid[1].dtype), pid[2], pid[4])
