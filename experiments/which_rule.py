"""Which rule when: what each takes and what it gives, beside BPTT, on several networks at a glance.

    python experiments/which_rule.py runs/frontier_digits runs/frontier_fsdd runs/resnet18_h100

takes seconds: it reads what `frontier.py` and `cost.py` (one number of time steps; on this machine or for a
`--target`) have written into their workdirs, whose names are those of the networks. Writes which_rule.json,
which_rule.md and which_rule.png.
"""

import dataclasses
import sys
from pathlib import Path

import tyro
from common.command import command, markdown_table, plus_minus, read_json, write_results
from plots.which_rule import plot_rules

from sltt_jax import bptt, parse_rule


@dataclasses.dataclass(frozen=True)
class WhichRule:
    """Settings.

    Attributes:
      folders: workdirs of `frontier.py` and `cost.py`, each with `bptt` among its rules.
      workdir: directory of what is written.
    """

    folders: tyro.conf.Positional[tuple[Path, ...]]
    workdir: Path = Path("runs/which_rule")


@command(WhichRule, __doc__)
def main(settings: WhichRule):
    rows = [row for folder in settings.folders for row in read(folder)]
    settings.workdir.mkdir(parents=True, exist_ok=True)
    table = tabulate(rows)
    write_results(settings.workdir, "which_rule", {"rows": rows}, table)
    plot_rules(rows, settings.workdir / "which_rule.png")
    print(table)


def read(folder: Path) -> list[dict]:
    """Reads what rules took and gave in a workdir, a row each, figures that were not measured left out.

    Returns:
      Rows of `network`, `rule`, `kind`, and over those of `bptt`: `temporaries`, `operations`, `bytes moved`;
      `cosine` (mean, deviation), and `accuracy` (mean, deviation) as it is and `lost` to that of `bptt`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it has several numbers of time steps, or `bptt` is not among its rules.
    """
    names = "frontier.json", "target.json", "cost.json"
    path = next((folder / name for name in names if (folder / name).exists()), None)
    if path is None:
        raise FileNotFoundError(f"{folder} has none of {', '.join(names)}")
    found = read_json(path)
    if path.name == "frontier.json":
        points = {row["rule"]: row for row in found["rows"]}
    else:
        if any(len(of_rule) > 1 for of_rule in found["rules"].values()):
            raise ValueError(f"{path} has several numbers of time steps; run cost.py with one --T")
        points = {rule: of_rule[0] for rule, of_rule in found["rules"].items()}
    if "bptt" not in points:
        raise ValueError(f"{path} must have bptt among its rules, which others are compared with")
    network = folder.name.removeprefix("frontier_").replace("_", " ")
    exact = figures(points["bptt"])
    return [
        {"network": network, "rule": rule, "kind": kind(rule), **compared(figures(point), exact)}
        for rule, point in points.items()
    ]


def figures(point: dict) -> dict:
    """What is known of a rule, whichever script found it."""
    operations = point.get("flops_per_update") or point.get("flops")
    if operations is None:
        operations = point["forward_flops"] + point["backward_flops"]
    known = {"temporaries": point["temp_bytes"], "operations": operations}
    if "moved_bytes" in point:
        known["bytes moved"] = point["moved_bytes"]
    if "test_accuracy" in point:
        known |= {"cosine": point["cosine"], "accuracy": point["test_accuracy"]}
    return known


def compared(of_rule: dict, exact: dict) -> dict:
    """Figures of a rule over those of BPTT; cosine and accuracy as they are."""
    measured = {name: of_rule[name] for name in ("cosine", "accuracy") if name in of_rule}
    ratios = {name: value / exact[name] for name, value in of_rule.items() if name not in measured}
    if "accuracy" in measured:
        measured["lost"] = exact["accuracy"][0] - of_rule["accuracy"][0]
    return {**ratios, **measured}


def kind(text: str) -> str:
    """Names what networks of different lengths have in common: "sltt in chunks" of "sltt(6)"."""
    rule = parse_rule(text.replace("(T", "(2"))
    name = type(rule).__name__
    if isinstance(rule, bptt) and (rule.bits or rule.remat):
        return f"{name} in bits" if rule.bits else f"{name}, remat"
    return f"{name} in chunks" if getattr(rule, "chunk", 1) > 1 else name


def tabulate(rows: list[dict]) -> str:
    """Writes a Markdown table, a line for every network and rule."""
    ratios = "temporaries", "operations", "bytes moved"
    lines = (
        [
            row["network"],
            row["rule"],
            *(f"{row[name]:.2f}" if name in row else "" for name in ratios),
            plus_minus(row["cosine"], ".3f") if "cosine" in row else "",
            plus_minus(row["accuracy"], ".1f", 100) if "accuracy" in row else "",
        ]
        for row in rows
    )
    return markdown_table(("network", "rule", *ratios, "cosine with bptt", "test accuracy (%)"), lines)


if __name__ == "__main__":
    sys.exit(main())
