"""SLTT-K over K, over how the K steps are drawn, and over how their gradients are scaled.

    python experiments/k_tradeoff.py digits --T 6

takes about a quarter of an hour on two cores; one that was stopped is resumed. Writes k_tradeoff.json,
k_tradeoff.md and k_tradeoff.png into the workdir, and every run.
"""

import dataclasses
import sys

from common.command import check_numbers, command, markdown_table, plus_minus, write_results
from common.runs import Run, presets
from common.sweeps import entries, sweep
from plots.sweeps import plot_k_tradeoff

from sltt_jax import sltt_k

DRAWS = "uniform", "strided", "first", "last"


@dataclasses.dataclass(frozen=True)
class Tradeoff(Run):
    """Settings that the runs have in common, and those that they are compared over.

    Attributes:
      K: numbers of steps with a backward pass; those above T are left out, but not all.
      seeds: runs of each kind.
    """

    K: tuple[int, ...] = (1, 2, 3)
    seeds: int = 3

    def __post_init__(self, *flags):
        super().__post_init__(*flags)
        check_numbers(self, "K")
        if min(self.K, default=1) > self.T:
            raise ValueError(f"K must have a number that is at most T={self.T}, got {self.K}")


@command(presets("k_tradeoff_", Tradeoff), __doc__)
def main(base: Tradeoff):
    rows = []
    variants = {rule: {"rule": rule} for rule in compared_rules(base.T, base.K)}
    for rule, _, summaries in sweep(base, variants, base.seeds):
        means = entries(summaries, "test_accuracy", "seconds_per_update")
        rows.append({"rule": rule, **means, "flops_per_update": summaries[0]["flops_per_update"]})
    table = tabulate(rows)
    write_results(base.workdir, "k_tradeoff", {"T": base.T, "seeds": base.seeds, "rows": rows}, table)
    title = f"{base.preset}, T={base.T}, {base.seeds} seeds"
    plot_k_tradeoff(rows, base.workdir / "k_tradeoff.png", title=title)
    print(f"{title} (in brackets: over sltt)\n\n{table}")


def compared_rules(T: int, K: tuple[int, ...]) -> list[str]:
    """`bptt`, `sltt`, and `sltt_k` for every K, draw and scale."""
    found = ["bptt", "sltt"]
    for k in (k for k in K if k <= T):
        found += [str(sltt_k(k, draw)) for draw in DRAWS] + [str(sltt_k(k, scale="unbiased"))]
    return found


def tabulate(rows: list[dict]) -> str:
    """Writes a Markdown table; time and work over those of `sltt`."""
    sltt = next(row for row in rows if row["rule"] == "sltt")
    header = "rule", "test accuracy (%)", "time / update", "GFLOP / update"
    lines = []
    for row in rows:
        time, work = row["seconds_per_update"][0], row["flops_per_update"]
        lines.append(
            [
                row["rule"],
                plus_minus(row["test_accuracy"], ".2f", 100),
                f"{1e3 * time:.1f} ms ({time / sltt['seconds_per_update'][0]:.2f})",
                f"{work / 1e9:.3f} ({work / sltt['flops_per_update']:.2f})",
            ]
        )
    return markdown_table(header, lines)


if __name__ == "__main__":
    sys.exit(main())
