"""What a rule buys: accuracy against memory, operations and the gradient's direction, rule beside rule.

    python experiments/frontier.py digits
    python experiments/frontier.py qtdb --data-dir data --rules bptt "tbptt(100)" "sltt(20)"

take ten minutes and five on two cores; one that was stopped is resumed. Writes frontier.json,
frontier.md and frontier.png into the workdir, and every run. A rule that sees less of the past wants another
learning rate: `--rules bptt "tbptt(100)" sltt --lrs 0.03 0.03 0.01` gives each its own. In a rule T stands
for the number of time steps, "bptt(T, bits=True)". The cosine is that of the rule's gradient with BPTT's, on
a batch, of the network that the rule has trained.
"""

import dataclasses
import re
import sys

from common.command import check_numbers, command, markdown_table, plus_minus, write_results
from common.measures import cosine_with_bptt
from common.runs import Run, presets
from common.sweeps import entries, mean_std, sweep
from plots.sweeps import plot_frontier


@dataclasses.dataclass(frozen=True)
class Frontier(Run):
    """Settings that the runs have in common, and those that they are compared over.

    Attributes:
      rules: what is compared, as `--rule` spells them, T for the number of time steps.
      lrs: learning rates, one for each of the rules; by default `--lr` for all.
      seeds: runs of each rule.
    """

    rules: tuple[str, ...] = (
        "bptt", "bptt(T)", "bptt(T, bits=True)", "bptt(remat=True)", "tbptt(2)",
        "ottt(0.5)", "sltt", "sltt(T)", "sltt_k(1)",
    )  # fmt: skip
    lrs: tuple[float, ...] | None = None
    seeds: int = 3

    def __post_init__(self, *flags):
        super().__post_init__(*flags)
        check_numbers(self, "seeds")
        if self.lrs is not None and len(self.lrs) != len(self.rules):
            raise ValueError(f"lrs must be one for each of {len(self.rules)} rules, got {self.lrs}")


@command(presets("frontier_", Frontier), __doc__)
def main(base: Frontier):
    rows = []
    rules = [re.sub(r"\bT\b", str(base.T), rule) for rule in base.rules]
    lrs = base.lrs or (base.lr,) * len(rules)
    variants = {
        rule: {"rule": rule, "rules": (), "lr": lr, "lrs": None} for rule, lr in zip(rules, lrs, strict=True)
    }
    for rule, runs, summaries in sweep(base, variants, base.seeds):
        means = entries(summaries, "test_accuracy", "seconds_per_update")
        alike = {name: summaries[0][name] for name in ("temp_bytes", "flops_per_update")}
        cosine = mean_std([cosine_with_bptt(run) for run in runs])
        rows.append({"rule": rule, "lr": runs[0].lr, **means, **alike, "cosine": cosine})
    table = tabulate(rows)
    write_results(base.workdir, "frontier", {"T": base.T, "seeds": base.seeds, "rows": rows}, table)
    title = f"{base.preset}, T={base.T}, {base.seeds} seeds"
    plot_frontier(rows, base.workdir / "frontier.png", title=title)
    print(f"{title}\n\n{table}")


def tabulate(rows: list[dict]) -> str:
    """Writes a Markdown table, a line for every rule."""
    header = (
        "rule", "learning rate", "test accuracy (%)", "temporaries", "GFLOP / update", "time / update",
        "cosine with bptt",
    )  # fmt: skip
    lines = (
        [
            row["rule"],
            f"{row['lr']:g}",
            plus_minus(row["test_accuracy"], ".1f", 100),
            f"{row['temp_bytes'] / 2**20:.1f} MiB",
            f"{row['flops_per_update'] / 1e9:.2f}",
            f"{row['seconds_per_update'][0] * 1e3:.0f} ms",
            plus_minus(row["cosine"], ".3f"),
        ]
        for row in rows
    )
    return markdown_table(header, lines)


if __name__ == "__main__":
    sys.exit(main())
