"""Trains the same network from the same start under every rule and prints one table.

    python experiments/compare_rules.py digits

takes a minute and a half on two cores. Writes table.md, table.json and the run of every rule.
"""

import dataclasses
import sys

import tyro
from common.runs import prepare_xla
from train import fail, prepare, presets, stopped, train, write_json

from sltt_jax.training import Stopped


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
    try:
        base = tyro.extras.overridable_config_cli(presets("compare_"), description=__doc__)
        prepare_xla()
        runs = {
            name: dataclasses.replace(base, **rule, workdir=base.workdir / name, overwrite=True)
            for name, rule in variants(base.T).items()
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
    except Stopped as error:
        return stopped(error)
    table = tabulate(rows)
    write_json(base.workdir / "table.json", rows)
    (base.workdir / "table.md").write_text(table + "\n")
    print(f"\n{base.preset}, T={base.T}, {base.epochs} epochs (in brackets: over bptt)\n")
    print(f"{table}\n\nfiles  {base.workdir}: table.md, table.json, and a run of each rule")
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
