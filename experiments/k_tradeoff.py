"""SLTT-K over K, over how the K steps are drawn, and over how their gradients are scaled.

    python experiments/k_tradeoff.py digits --T 6

takes about a quarter of an hour on two cores; one that was stopped goes on. Writes k_tradeoff.json,
k_tradeoff.md and k_tradeoff.png into the workdir, and every run.
"""

import dataclasses
import sys

import tyro
from plots.sweeps import plot_k_tradeoff
from common.runs import Run, prepare_xla, presets, write_json
from common.sweeps import mean_std, sweep
from train import fail, stopped

from sltt_jax.training import Stopped

DRAWS = "uniform", "strided", "first", "last"


@dataclasses.dataclass(frozen=True)
class Tradeoff(Run):
    """What the runs have in common, and what they are compared over.

    Attributes:
      K: numbers of steps with a backward pass; those above T are left out.
      seeds: runs of each kind.
    """

    K: tuple[int, ...] = (1, 2, 3)
    seeds: int = 3

    def __post_init__(self):
        super().__post_init__()
        if not self.K or min(self.K) < 1:
            raise ValueError(f"K must be numbers >= 1, got {self.K}")


def variants(T: int, K: tuple[int, ...]) -> dict[str, dict]:
    """Settings by name: `bptt`, `sltt`, and `sltt_k` for every K, draw and scale."""
    found: dict[str, dict] = {"bptt": {"rule": "bptt"}, "sltt": {"rule": "sltt"}}
    for k in (k for k in K if k <= T):
        for draw in DRAWS:
            found[f"sltt_k({k}, {draw})"] = {"rule": "sltt_k", "k": k, "draw": draw}
        found[f"sltt_k({k}, unbiased)"] = {"rule": "sltt_k", "k": k, "scale": "unbiased"}
    return found


def tabulate(rows: list[dict]) -> str:
    """A Markdown table; time and work over those of `sltt`."""
    sltt = next(row for row in rows if row["name"] == "sltt")
    lines = ["| rule | test accuracy (%) | time / update | GFLOP / update |", "|---|---|---|---|"]
    for row in rows:
        mean, std = row["test_accuracy"]
        time, work = row["seconds_per_update"][0], row["flops_per_update"]
        lines.append(
            f"| {row['name']} | {100 * mean:.2f} +- {100 * std:.2f} "
            f"| {1e3 * time:.1f} ms ({time / sltt['seconds_per_update'][0]:.2f}) "
            f"| {work / 1e9:.3f} ({work / sltt['flops_per_update']:.2f}) |"
        )
    return "\n".join(lines)


def main() -> int:
    try:
        base = tyro.extras.overridable_config_cli(presets("k_tradeoff_", Tradeoff), description=__doc__)
        prepare_xla()
        rows = []
        for name, summaries in sweep(base, variants(base.T, base.K), base.seeds):
            entries = "test_accuracy", "seconds_per_update"
            rows.append(
                {
                    "name": name,
                    **{entry: mean_std(summaries, entry) for entry in entries},
                    "flops_per_update": summaries[0]["flops_per_update"],
                }
            )
    except (ValueError, OSError, FloatingPointError) as error:
        return fail(error)
    except Stopped as error:
        return stopped(error)
    write_json(base.workdir / "k_tradeoff.json", {"T": base.T, "seeds": base.seeds, "rows": rows})
    table = tabulate(rows)
    (base.workdir / "k_tradeoff.md").write_text(table + "\n")
    title = f"{base.preset}, T={base.T}, {base.seeds} seeds"
    plot_k_tradeoff(rows, base.workdir / "k_tradeoff.png", title=title)
    print(f"{title} (in brackets: over sltt)\n\n{table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
