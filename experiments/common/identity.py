"""What data of one's own were when a run began: a run that is resumed or read must find the same."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common.command import read_json, write_json

from sltt_jax import data

FILE = "data.json"


def identity(own: data.ArrayData | data.BatchData, names: tuple[str, ...], T: int) -> dict[str, Any]:
    """Says what tells data apart: classes, numbers of samples, and of arrays a checksum over `T` steps."""
    if isinstance(own, data.BatchData):
        return {"classes": list(names), "batches an epoch": own.train.steps_per_epoch}
    return {
        "classes": list(names),
        "training samples": len(own.train_x),
        "test samples": len(own.test_x),
        "T": T,
        "checksum": _checksum(own),
    }


def _checksum(own: data.ArrayData) -> str:
    """Checksum of all arrays, without a copy: they may fill half of the memory."""
    digest = hashlib.sha256()
    for path, array in jax.tree_util.tree_leaves_with_path(vars(own)):
        if isinstance(array, np.ndarray):
            digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape};".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def record(workdir: Path, found: Mapping[str, Any]):
    """Writes it into a workdir; of data sets by name there is nothing to write."""
    (workdir / FILE).unlink(missing_ok=True)
    if found:
        write_json(workdir / FILE, found)


def check(workdir: Path, source: str, found: Mapping[str, Any]):
    """Compares it with what is in a workdir, if there is something.

    Raises:
      ValueError: the data are not what the run began with.
    """
    if not found or not (workdir / FILE).exists():
        return
    was = read_json(workdir / FILE)
    # At another number of steps the same recordings have other frames.
    apart = {"T", "checksum"} if was.get("T") != found.get("T") else set()
    differs = [k for k in was.keys() | found.keys() if k not in apart and was.get(k) != found.get(k)]
    if differs:
        lines = (f"  {name}: {was.get(name)} then, {found.get(name)} now" for name in sorted(differs))
        raise ValueError(
            f"{source} is not what the run in {workdir} began with; put it back, or train anew in another "
            "workdir:\n" + "\n".join(lines)
        )
