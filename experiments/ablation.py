"""Surrogate function, tau and T: accuracy under BPTT and SLTT, and how far apart their gradients are.

    python experiments/ablation.py digits --epochs 10

takes about half an hour on two cores; one that was stopped is resumed. Writes ablation.json, ablation.md and
ablation.png into the workdir, and every run. The cosine is that of the trained SLTT network, on a batch.
"""

import dataclasses
import sys

from common.command import command, markdown_table, plus_minus, write_results
from common.measures import cosine_with_bptt
from common.runs import Run, presets
from common.sweeps import entries, mean_std, sweep
from plots.sweeps import plot_ablation

from sltt_jax.surrogate import SURROGATES


@dataclasses.dataclass(frozen=True)
class Ablation(Run):
    """Settings that the runs have in common, and those that they are compared over.

    Attributes:
      surrogates: spike functions.
      taus: membrane time constants in steps.
      steps: numbers of time steps T.
      seeds: runs of each kind.
    """

    surrogates: tuple[str, ...] = ("triangle", "sigmoid", "atan")
    taus: tuple[float, ...] = (1.1, 2.0, 5.0)
    steps: tuple[int, ...] = (2, 6)
    seeds: int = 2

    def __post_init__(self, *flags):
        super().__post_init__(*flags)
        if unknown := set(self.surrogates) - SURROGATES.keys():
            raise ValueError(f"surrogates must be of {', '.join(SURROGATES)}, got {', '.join(unknown)}")


@command(presets("ablation_", Ablation), __doc__)
def main(base: Ablation):
    rows, settings = [], variants(base)
    for name, runs, summaries in sweep(base, settings, base.seeds):
        row = {**settings[name], **entries(summaries, "test_accuracy")}
        if row["rule"] == "sltt":
            row["cosine"] = mean_std([cosine_with_bptt(run) for run in runs])
        rows.append(row)
    table = tabulate(rows)
    write_results(base.workdir, "ablation", {"seeds": base.seeds, "rows": rows}, table)
    title = f"{base.preset}, {base.epochs} epochs, {base.seeds} seeds"
    plot_ablation(rows, base.workdir / "ablation.png", title=title)
    print(f"{title}\n\n{table}")


def variants(base: Ablation) -> dict[str, dict]:
    """Settings by name."""
    return {
        f"{surrogate}-tau{tau:g}-T{T}-{rule}": {"surrogate": surrogate, "tau": tau, "T": T, "rule": rule}
        for surrogate in base.surrogates
        for tau in base.taus
        for T in base.steps
        for rule in ("bptt", "sltt")
    }


def tabulate(rows: list[dict]) -> str:
    """Writes a Markdown table, a line for every surrogate, tau and T."""
    header = "surrogate", "tau", "T", "bptt (%)", "sltt (%)", "cosine"
    lines = (
        [
            row["surrogate"],
            f"{row['tau']:g}",
            str(row["T"]),
            *(plus_minus(r["test_accuracy"], ".2f", 100) for r in (exact, row)),
            plus_minus(row["cosine"], ".3f"),
        ]
        for exact, row in zip(rows[::2], rows[1::2], strict=True)
    )
    return markdown_table(header, lines)


if __name__ == "__main__":
    sys.exit(main())
