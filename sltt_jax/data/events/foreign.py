"""Decodes HDF5, NIR, AEDAT 4.0 and MATLAB files in a process of its own, which damage may crash or fill.

Libraries in C and Rust read these formats, and what they do with wrong bytes is not in our hands: their time
and memory are. This file is both sides of it; as a script it imports nothing of this library, which takes
seconds.
"""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# A process that reads well needs a second to start, and reads tens of megabytes a second.
PATIENCE = 30.0
SECONDS_PER_BYTE = 1e-6

# Decoded events, in several copies, are up to about fifteen times as large as those of a compressed file.
MEMORY = 2**30
MEMORY_PER_BYTE = 64

# What a byte of deflated data can stand for at most (RFC 1951: 258 bytes by two codes of a bit each).
MOST_DEFLATED = 1032


def decode(package: str, path: str | Path) -> dict[str, np.ndarray]:
    """Reads a file with a package that may not come back: "h5py" (see `_spikes`), "nir", "aedat" or "scipy".

    Raises:
      OSError: there is no such file, or it may not be read.
      ValueError: the file is not what it should be, takes too much time or memory, or crashes the package.
      ModuleNotFoundError: the package is not installed.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(f"{path} needs the package {package}: pip install {package}")
    seconds, memory = PATIENCE + SECONDS_PER_BYTE * size, MEMORY + MEMORY_PER_BYTE * size
    command = [sys.executable, "-P", __file__, package, str(path), str(memory)]
    # BLAS would take address space for every thread.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as result:
        try:
            ended = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=result,
                stderr=subprocess.PIPE,
                timeout=seconds,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            raise ValueError(f"{package} was stopped after {seconds:.0f} s for {size:,} bytes") from None
        if ended.returncode:
            said = ended.stderr.decode(errors="replace")
            reason = _reason(said).removeprefix("ValueError: ")
            raise ValueError(reason or f"{package} ended with status {ended.returncode}")
        result.seek(0)
        with np.load(result) as arrays:
            return dict(arrays)


def _reason(said: str) -> str:
    """The line that names the error, of what a process said at its end; Rust says more after it."""
    lines = said.strip().splitlines() or [""]
    errors = [line for line in lines if re.match(r"[\w.]+(Error|Exception|Exit|Panic)\b", line)]
    return (errors or lines)[-1]


def _spikes(path: str) -> dict[str, np.ndarray]:
    """Lists spikes/times and spikes/units, end to end and with their ends, and labels, of an HDF5 file.

    What is read lies in this file, and cannot be more than it.
    """
    import h5py
    from h5py import h5l  # pyright: ignore[reportAttributeAccessIssue]

    size, found = os.path.getsize(path), {}

    def dataset(name):
        node: Any = file
        for part in name.split("/"):
            # Links of other kinds lead to any file of the machine.
            if node.id.links.get_info(part.encode()).type != h5l.TYPE_HARD:
                raise ValueError(f"{name} does not lie in the file, it is a link")
            node = node[part]
        if not isinstance(node, h5py.Dataset) or node.shape is None or len(node.shape) != 1:
            raise ValueError(f"{name} is not a list")
        if node.external or node.is_virtual:
            raise ValueError(f"the numbers of {name} do not lie in the file")
        if 16 * len(node) > size:  # a recording takes more in each of the two lists
            raise ValueError(f"{name} has {len(node)} entries, in a file of {size} bytes")
        return node

    with h5py.File(path, "r") as file:
        for name, kinds in (("times", "fiu"), ("units", "iu")):
            lists = dataset(f"spikes/{name}")
            kind = np.dtype(h5py.check_vlen_dtype(lists.dtype) or object)
            if kind.kind not in kinds:
                raise ValueError(f"spikes/{name} must be lists of {kinds!r}, got {lists.dtype} of {kind}")
            rows, left = [np.zeros(0, kind)], size
            for i in range(len(lists)):
                rows.append(lists[i])
                left -= rows[-1].nbytes
                if left < 0:
                    raise ValueError(f"spikes/{name} are more than the {size} bytes of the file")
            found[name] = np.concatenate(rows)
            found[f"{name}_ends"] = np.cumsum([len(row) for row in rows[1:]], dtype=np.int64)
        labels = dataset("labels")
        if labels.dtype.kind not in "iu":
            raise ValueError(f"labels must be integers, got {labels.dtype}")
        return {**found, "labels": labels[:]}


def _tree(path: str) -> dict[str, np.ndarray]:
    """Reads all arrays and texts of an NIR file, by where they are in it: "node/nodes/lif/tau"."""
    import h5py
    from h5py import h5l  # pyright: ignore[reportAttributeAccessIssue]

    found, left = {}, MOST_DEFLATED * os.path.getsize(path)

    def visit(group, at):
        nonlocal left
        for name in group:
            where = f"{at}{name}"
            if group.id.links.get_info(name.encode()).type != h5l.TYPE_HARD or where.count("/") > 40:
                raise ValueError(f"{where} does not lie in the file, it is a link, or it lies too deep")
            node: Any = group[name]
            if isinstance(node, h5py.Group):
                visit(node, f"{where}/")
                continue
            if not isinstance(node, h5py.Dataset) or node.shape is None or node.external or node.is_virtual:
                raise ValueError(f"{where} is nothing that lies in the file")
            left -= node.nbytes + 64
            if left < 0:
                raise ValueError(f"{where} has {node.shape} entries, more than the bytes of the file can be")
            if h5py.check_string_dtype(node.dtype):
                found[where] = np.asarray(node.asstr()[()], str)
            elif node.dtype.kind in "fiu":
                found[where] = np.asarray(node[()])
            else:
                raise ValueError(f"{where} must be numbers or text, got {node.dtype}")

    with h5py.File(path, "r") as file:
        visit(file, "")
    return found


def _camera(path: str) -> dict[str, np.ndarray]:
    """Reads t, x, y and p of the events of an AEDAT 4.0 file, `[N]`."""
    import aedat

    decoder = aedat.Decoder(path)
    streams = {i for i, stream in decoder.id_to_stream().items() if stream["type"] == "events"}
    packets = [packet["events"] for packet in decoder if packet["stream_id"] in streams]
    if len(streams) != 1 or not packets:
        raise ValueError(f"{len(packets)} packets of {len(streams)} event streams, expected one stream")
    events = np.concatenate(packets)
    return {ours: events[name] for ours, name in (("t", "t"), ("x", "x"), ("y", "y"), ("p", "on"))}


def _matlab(path: str) -> dict[str, np.ndarray]:
    """Reads the arrays of numbers of a MATLAB 5 file."""
    from scipy.io import loadmat

    arrays = loadmat(path, appendmat=False).items()
    return {name: a for name, a in arrays if isinstance(a, np.ndarray) and a.dtype.kind in "iuf"}


_READERS: dict[str, Callable[[str], dict[str, Any]]] = {
    "h5py": _spikes,
    "nir": _tree,
    "aedat": _camera,
    "scipy": _matlab,
}


def _main(package, path, memory):
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    # What a library prints is not to get into the result.
    with os.fdopen(os.dup(1), "wb") as result:
        os.dup2(2, 1)
        np.savez(result, **_READERS[package](path))


if __name__ == "__main__":
    _main(*sys.argv[1:])
