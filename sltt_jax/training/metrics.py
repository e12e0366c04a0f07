"""Metrics of a run, a line an epoch in `metrics.jsonl`, and files that are whole at any moment."""

import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Reads the lines of `metrics.jsonl`, one an epoch; none if there is no such file.

    A line that is not whole is left out, with a warning: as a kill or a full disk leaves it, until the run is
    resumed, which writes all of them anew.
    """
    path, records, damaged = workdir / METRICS_FILE, [], []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], 1):
        try:
            records.append(dict(json.loads(line)))
        except (TypeError, ValueError):
            damaged.append(str(number))
    if damaged:
        warnings.warn(f"{path}: damaged and left out: line {', '.join(damaged)}", stacklevel=2)
    return records


def append_metrics(workdir: Path, record: dict[str, Any]):
    """Adds a line to `metrics.jsonl`.

    Raises:
      OSError: it cannot be written, or not all of it.
    """
    path = workdir / METRICS_FILE
    try:
        with open(path, "a") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def rewrite_metrics(workdir: Path, records: Iterable[dict[str, Any]]):
    """Makes `metrics.jsonl` hold these lines; until all of them are on disk it holds those before."""
    write_text(workdir / METRICS_FILE, "".join(json.dumps(record) + "\n" for record in records))


def write_text(path: Path, text: str):
    """Writes a file that is either the old or the new one, whatever happens in between.

    Raises:
      OSError: it cannot be written; the file before is intact.
    """
    unfinished = path.with_name(f"{path.name}.tmp")
    try:
        with open(unfinished, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
