"""Half precision against single: the same runs with convolutions and matrix products in each.

    python experiments/precision.py digits

takes a minute and a half on two cores; one that was stopped is resumed. Writes precision.json and
precision.md into the workdir, and every run. A CPU without units for half precision is slower with it: there
it is the accuracy that counts.
"""

import dataclasses
import sys
from typing import Literal, get_args

from common.command import command, markdown_table, plus_minus, write_results
from common.runs import Run, presets
from common.sweeps import entries, sweep

Precision = Literal["float32", "bfloat16", "float16"]


@dataclasses.dataclass(frozen=True)
class Precisions(Run):
    """Settings that the runs have in common, and those that they are compared over.

    Attributes:
      precisions: of convolutions and matrix products.
      seeds: runs of each.
    """

    precisions: tuple[Precision, ...] = get_args(Precision)
    seeds: int = 3


@command(presets("precision_", Precisions), __doc__)
def main(base: Precisions):
    rows = []
    for name, _, summaries in sweep(base, {p: {"precision": p} for p in base.precisions}, base.seeds):
        means = entries(summaries, "test_accuracy", "train_loss", "seconds_per_update")
        rows.append({"precision": name, **means, "temp_bytes": summaries[0]["temp_bytes"]})
    table = tabulate(rows)
    write_results(base.workdir, "precision", {"seeds": base.seeds, "rows": rows}, table)
    print(f"{base.preset}, {base.rule}, T={base.T}, {base.epochs} epochs, {base.seeds} seeds\n\n{table}")


def tabulate(rows: list[dict]) -> str:
    """Writes a Markdown table, a line for every precision; mean and standard deviation over the seeds."""
    header = "precision", "test accuracy (%)", "train loss", "temporaries", "time / update"
    lines = (
        [
            row["precision"],
            plus_minus(row["test_accuracy"], ".2f", 100),
            plus_minus(row["train_loss"], ".4f"),
            f"{row['temp_bytes'] / 2**20:.2f} MiB",
            f"{1e3 * row['seconds_per_update'][0]:.1f} ms",
        ]
        for row in rows
    )
    return markdown_table(header, lines)


if __name__ == "__main__":
    sys.exit(main())
