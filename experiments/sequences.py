"""Sequences on recurrent networks: accuracy against memory, under rules that see more or less of the past.

    python experiments/sequences.py qtdb --data-dir data

takes half an hour on two cores; one that was stopped is resumed. Writes sequences.json, sequences.md and
sequences.png into the workdir, and every run. A rule that sees less of the past wants another learning rate:
`--rules bptt "tbptt(100)" sltt --lrs 0.03 0.03 0.01` gives each its own.
"""

import dataclasses
import sys

from common.command import check_numbers, command, markdown_table, plus_minus, write_results
from common.runs import Run, presets
from common.sweeps import entries, sweep
from plots.sweeps import plot_accuracy_of_memory


@dataclasses.dataclass(frozen=True)
class Sequences(Run):
    """Settings that the runs have in common, and those that they are compared over.

    Attributes:
      rules: what is compared, as `--rule` spells them.
      lrs: learning rates, one for each of the rules; by default `--lr` for all.
      seeds: runs of each rule.
    """

    rules: tuple[str, ...] = ("bptt", "tbptt(100)", "tbptt(30)", "tbptt(10)", "sltt(20)")
    lrs: tuple[float, ...] | None = None
    seeds: int = 3

    def __post_init__(self, *flags):
        super().__post_init__(*flags)
        check_numbers(self, "seeds")
        if self.lrs is not None and len(self.lrs) != len(self.rules):
            raise ValueError(f"lrs must be one for each of {len(self.rules)} rules, got {self.lrs}")


@command(presets("sequences_", Sequences), __doc__)
def main(base: Sequences):
    rows = []
    lrs = base.lrs or (base.lr,) * len(base.rules)
    variants = {rule: {"rule": rule, "lr": lr, "lrs": None} for rule, lr in zip(base.rules, lrs, strict=True)}
    for rule, runs, summaries in sweep(base, variants, base.seeds):
        means = entries(summaries, "test_accuracy", "seconds_per_update")
        rows.append({"rule": rule, "lr": runs[0].lr, **means, "temp_bytes": summaries[0]["temp_bytes"]})
    table = markdown_table(
        ["rule", "learning rate", "test accuracy (%)", "temporaries", "time of an update"],
        (
            [
                row["rule"],
                f"{row['lr']:g}",
                plus_minus(row["test_accuracy"], ".1f", 100),
                f"{row['temp_bytes'] / 2**20:.1f} MiB",
                f"{row['seconds_per_update'][0] * 1e3:.0f} ms",
            ]
            for row in rows
        ),
    )
    write_results(base.workdir, "sequences", {"T": base.T, "seeds": base.seeds, "rows": rows}, table)
    title = f"{base.preset}, T={base.T}, {base.seeds} seeds"
    plot_accuracy_of_memory(rows, base.workdir / "sequences.png", title=title)
    print(f"{title}\n\n{table}")


if __name__ == "__main__":
    sys.exit(main())
