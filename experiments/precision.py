"""Half precision against single: the same runs with convolutions and matrix products in each.

    python experiments/precision.py digits

takes three minutes on two cores; one that was stopped goes on. Writes precision.json and precision.md into
the workdir, and every run. A CPU without units for half precision is slower with it: there it is the accuracy
that counts.
"""

import dataclasses
import sys
from typing import Literal, get_args

import tyro
from common.runs import Run, prepare_xla, presets, write_json
from common.sweeps import mean_std, sweep
from train import fail, stopped

from sltt_jax.training import Stopped

Precision = Literal["float32", "bfloat16", "float16"]
ENTRIES = "test_accuracy", "train_loss", "seconds_per_update"


@dataclasses.dataclass(frozen=True)
class Precisions(Run):
    """What the runs have in common, and what they are compared over.

    Attributes:
      precisions: of convolutions and matrix products.
      seeds: runs of each.
    """

    precisions: tuple[Precision, ...] = get_args(Precision)
    seeds: int = 3


def tabulate(rows: list[dict]) -> str:
    """A Markdown table, a line for every precision; mean and standard deviation over the seeds."""
    lines = [
        "| precision | test accuracy (%) | train loss | temporaries | time / update |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        mean, std = row["test_accuracy"]
        loss, spread = row["train_loss"]
        lines.append(
            f"| {row['precision']} | {100 * mean:.2f} +- {100 * std:.2f} | {loss:.4f} +- {spread:.4f} "
            f"| {row['temp_bytes'] / 2**20:.2f} MiB | {1e3 * row['seconds_per_update'][0]:.1f} ms |"
        )
    return "\n".join(lines)


def main() -> int:
    try:
        base = tyro.extras.overridable_config_cli(presets("precision_", Precisions), description=__doc__)
        prepare_xla()
        rows = []
        for name, summaries in sweep(base, {p: {"precision": p} for p in base.precisions}, base.seeds):
            means = {entry: mean_std(summaries, entry) for entry in ENTRIES}
            rows.append({"precision": name, **means, "temp_bytes": summaries[0]["temp_bytes"]})
    except (ValueError, OSError, FloatingPointError) as error:
        return fail(error)
    except Stopped as error:
        return stopped(error)
    write_json(base.workdir / "precision.json", {"seeds": base.seeds, "rows": rows})
    table = tabulate(rows)
    (base.workdir / "precision.md").write_text(table + "\n")
    print(f"{base.preset}, {base.rule}, T={base.T}, {base.epochs} epochs, {base.seeds} seeds\n\n{table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
