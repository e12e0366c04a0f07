"""Trains the same network from the same start under every rule and prints one table.

    python experiments/compare_rules.py digits

takes about two minutes on two cores. Writes table.md, table.json and the run of every rule into the workdir.
"""

import dataclasses
import sys
from pathlib import Path

import tyro
from configs import DESCRIPTIONS, PRESETS, Config
from train import INTERRUPTED, Run, fail, prepare, train, write_json


@dataclasses.dataclass(frozen=True)
class Comparison(Config):
    """A configuration whose rule is replaced by each one in turn.

    Attributes:
      workdir: directory of the table and of the runs; a comparison that is in it is replaced.
    """

    workdir: Path = Path("runs/compare_rules")


def variants(T: int) -> dict[str, dict]:
    """The rules that are compared, and their settings."""
    return {
        "bptt": {"rule": "bptt"},
        "tbptt(2)": {"rule": "tbptt", "window": min(2, T)},
        "sltt": {"rule": "sltt"},
        f"sltt(chunk={T})": {"rule": "sltt", "chunk": T},
        "sltt_k(1)": {"rule": "sltt_k", "k": 1},
        "sltt_k(2)": {"rule": "sltt_k", "k": min(2, T)},
    }


def main() -> int:
    presets = {
        name: (DESCRIPTIONS[name], Comparison(**vars(config), workdir=Path("runs") / f"compare_{name}"))
        for name, config in PRESETS.items()
    }
    try:
        comparison = tyro.extras.overridable_config_cli(presets, description=__doc__)
        settings = {k: v for k, v in vars(comparison).items() if k != "workdir"}
        runs = {
            name: Run(**{**settings, **rule}, workdir=comparison.workdir / name, overwrite=True)
            for name, rule in variants(comparison.T).items()
        }
        experiments = {name: prepare(run) for name, run in runs.items()}
    except (ValueError, OSError) as error:
        return fail(error)
    rows = {}
    try:
        for name, experiment in experiments.items():
            print(name, file=sys.stderr)
            rows[name] = train(experiment)
    except FloatingPointError as error:
        return fail(error)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    table = tabulate(rows)
    write_json(comparison.workdir / "table.json", rows)
    (comparison.workdir / "table.md").write_text(table + "\n")
    print(f"\n{comparison.preset}, T={comparison.T}, {comparison.epochs} epochs (in brackets: over bptt)\n")
    print(f"{table}\n\nfiles  {comparison.workdir}: table.md, table.json, and a run of each rule")
    return 0


def tabulate(rows: dict[str, dict]) -> str:
    """A Markdown table of summaries, with ratios to the row "bptt"."""
    columns = {
        "temporaries": ("temp_bytes", lambda v: f"{v / 2**20:.2f} MiB"),
        "GFLOP / update": ("flops_per_update", lambda v: f"{v / 1e9:.3f}"),
        "time / update": ("seconds_per_update", lambda v: f"{v * 1e3:.1f} ms"),
    }
    lines = ["| rule | test accuracy | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for name, row in rows.items():
        cells = [f"{show(row[key])} ({row[key] / rows['bptt'][key]:.2f})" for key, show in columns.values()]
        lines.append(f"| {name} | {row['test_accuracy']:.4f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
