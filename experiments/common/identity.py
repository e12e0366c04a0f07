"""What data of one's own were when a run began: a run that is resumed or read must find the same."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.command import read_json, write_json

from sltt_jax import data, training

FILE = "data.json"


def identity_of(own: data.ArrayData | data.BatchData, names: tuple[str, ...], T: int) -> dict[str, Any]:
    """Says what tells data apart: classes, numbers of samples, and of arrays a checksum over `T` steps."""
    if isinstance(own, data.BatchData):
        return {"classes": list(names), "batches an epoch": own.train.steps_per_epoch}
    return {
        "classes": list(names),
        "training samples": len(own.train_x),
        "test samples": len(own.test_x),
        "T": T,
        "checksum": training.sha256(vars(own)),
    }


def record(workdir: Path, found: Mapping[str, Any]):
    """Writes it into a workdir; of data sets by name there is nothing to write."""
    (workdir / FILE).unlink(missing_ok=True)
    if found:
        write_json(workdir / FILE, found)


def check(workdir: Path, source: str, found: Mapping[str, Any]):
    """Compares it with what is in a workdir, if there is something.

    Raises:
      ValueError: the data are not what the run began with, or the file is damaged.
    """
    if not found or not (workdir / FILE).exists():
        return
    was = read_json(workdir / FILE)
    if not isinstance(was, dict):
        raise ValueError(f"{workdir / FILE} is damaged: it must hold an object, got {type(was).__name__}")
    # At another number of steps the same recordings have other frames.
    apart = {"T", "checksum"} if was.get("T") != found.get("T") else set()
    differs = [k for k in was.keys() | found.keys() if k not in apart and was.get(k) != found.get(k)]
    if differs:
        lines = (f"  {name}: {was.get(name)} then, {found.get(name)} now" for name in sorted(differs))
        raise ValueError(
            f"{source} is not what the run in {workdir} began with; put it back, or train anew in another "
            "workdir:\n" + "\n".join(lines)
        )
