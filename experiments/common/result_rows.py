"""Results that are written one by one while there is time, so that nothing is lost when it is over."""

import datetime
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from common.command import markdown_table

# A row is begun with at least so many seconds left, and this much more than the rows before it have taken.
LEAST_SECONDS, MARGIN = 3.0, 1.3

COLUMNS = {
    "stage": "stage", "workload": "workload", "peer": "peer", "rule": "rule", "precision": "precision",
    "T": "T", "batch": "batch", "ms": "ms", "tflops": "TFLOP/s", "temp_mib": "temporaries MiB",
    "peak_mib": "peak MiB", "launches": "launches", "compile_seconds": "compile s", "loss": "loss",
}  # fmt: skip
REASONS = "error", "skipped", "cannot", "missing"


class Rows:
    """Rows of one stage of a report.

    Attributes:
      failed: whether a row holds an error.
    """

    def __init__(self, paths: Iterable[Path], seconds: float, **common: Any):
        """Nothing is written yet.

        Args:
          paths: the file of all rows, and others of only those with figures. Each is made, with its folder,
            when there is something to write.
          seconds: no row is begun after so long.
          **common: entries of every row.
        """
        self._paths = tuple(paths)
        self._ends = time.monotonic() + seconds
        self._common = common
        self._taken: list[float] = []
        self.failed = False

    @property
    def seconds_left(self) -> float:
        """Until no row is begun any more."""
        return self._ends - time.monotonic()

    def add(self, **row: Any):
        """Writes a row to the end of the files, and prints it; entries that are None are left out."""
        when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        row = {**self._common, **{k: v for k, v in row.items() if v is not None}, "at": when}
        self.failed |= "error" in row
        for path in self._paths if not set(REASONS) & row.keys() else self._paths[:1]:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:  # closed, and so flushed, after every row
                print(json.dumps(row), file=file)
        print(json.dumps({k: v for k, v in row.items() if k != "kernels"}), flush=True)

    def attempt(self, measure: Callable[[], dict[str, Any]], **names: Any):
        """Adds the row of `names` and of what `measure` returns; or of why there is nothing.

        Whatever it raises becomes the "error" of the row, and the rows after it are measured all the same. If
        there is less time left than the rows before have taken, it is "skipped".
        """
        # The first row took the imports as well.
        needed = max(LEAST_SECONDS, MARGIN * statistics.median(self._taken[1:] or [0.0]))
        if self.seconds_left < needed:
            return self.add(**names, skipped=f"{self.seconds_left:.0f} s left, {needed:.0f} s needed")
        began = time.monotonic()
        try:
            found = measure()
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {error}"[:1000]}
        gc.collect()  # what a failed program held
        self._taken.append(time.monotonic() - began)
        self.add(**names, **found)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads the rows of a file.

    Raises:
      ValueError: a line is no row.
    """
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            rows.append(dict(json.loads(line)))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}, is no row of results: {error}") from error
    return rows


def tabulate(rows: Iterable[dict[str, Any]]) -> str:
    """Writes a Markdown table of rows; in the last column is why a row has no figures."""

    def cell(value):
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    def note(row):
        return "; ".join(
            f"{k}: {row[k]}".replace("\n", " ")[:100] for k in (*REASONS, "deviation") if k in row
        )

    lines = ([*(cell(row.get(name, "")) for name in COLUMNS), note(row)] for row in rows)
    return markdown_table([*COLUMNS.values(), ""], lines)
