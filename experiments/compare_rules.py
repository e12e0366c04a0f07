"""Trains the same network from the same start under every rule and prints one table.

    python experiments/compare_rules.py digits

takes a minute and a half on two cores; one that was stopped is resumed. Writes table.md, table.json and the
run of every rule.
"""

import dataclasses
import sys

from common.command import command, markdown_table, write_results
from common.runs import Run, presets
from common.sweeps import check_all, trained


@command(presets("compare_"), __doc__)
def main(base: Run):
    runs = {
        rule: dataclasses.replace(base, rule=rule, workdir=base.workdir / rule)
        for rule in compared_rules(base.T)
    }
    check_all(runs.values())
    rows = {rule: trained(run) for rule, run in runs.items()}
    table = tabulate(rows)
    write_results(base.workdir, "table", rows, table)
    print(f"\n{base.preset}, T={base.T}, {base.epochs} epochs (in brackets: over bptt)\n")
    print(f"{table}\n\nfiles  {base.workdir}: table.md, table.json, and a run of each rule")


def compared_rules(T: int) -> list[str]:
    """The rules that are compared over T steps."""
    rules = ["bptt", f"tbptt({min(2, T)})", "sltt", f"sltt({T})", "sltt_k(1)", f"sltt_k({min(2, T)})"]
    return list(dict.fromkeys(rules))


def tabulate(rows: dict[str, dict]) -> str:
    """Writes a Markdown table of summaries, with ratios to the row "bptt"."""
    columns = {
        "temporaries": ("temp_bytes", lambda v: f"{v / 2**20:.2f} MiB"),
        "GFLOP / update": ("flops_per_update", lambda v: f"{v / 1e9:.3f}"),
        "time / update": ("seconds_per_update", lambda v: f"{v * 1e3:.1f} ms"),
    }
    over_bptt = lambda row, key: row[key] / rows["bptt"][key]
    lines = (
        [
            name,
            f"{row['test_accuracy']:.4f}",
            *(f"{show(row[key])} ({over_bptt(row, key):.2f})" for key, show in columns.values()),
        ]
        for name, row in rows.items()
    )
    return markdown_table(["rule", "test accuracy", *columns], lines)


if __name__ == "__main__":
    sys.exit(main())
