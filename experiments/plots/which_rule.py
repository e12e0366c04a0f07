"""The picture of which_rule.py."""

from pathlib import Path

import matplotlib.pyplot as plt
from plots.style import save

PANELS = {
    "temporaries": "temporaries over bptt's",
    "operations": "operations over bptt's",
    "cosine": "cosine with\nBPTT's gradient",
    "lost": "accuracy lost to bptt\n(percentage points)",
}
MARKERS = "os^vDPX"


def plot_rules(rows: list[dict], path: Path):
    """Memory, operations, cosine and accuracy, a line for every kind of rule, a marker for every network."""
    kinds, networks = sorted({row["kind"] for row in rows}), list(dict.fromkeys(r["network"] for r in rows))
    figure, panels = plt.subplots(
        1, len(PANELS), figsize=(11, 1.8 + 0.42 * len(kinds)), sharey=True, layout="constrained"
    )
    for axes, (measure, label) in zip(panels, PANELS.items(), strict=True):
        for i, network in enumerate(networks):
            shown = [row for row in rows if row["network"] == network and measure in row]
            # Each network has a height of its own, so that equal figures do not hide each other.
            ys = [kinds.index(row["kind"]) + 0.12 * (i - (len(networks) - 1) / 2) for row in shown]
            values, spreads = (
                zip(*(_value(row, measure) for row in shown), strict=True) if shown else ((), ())
            )
            marker = MARKERS[i % len(MARKERS)]
            axes.errorbar(values, ys, xerr=spreads, fmt=marker, color=f"C{i}", ms=5, capsize=2)
        axes.set(xlabel=label)
    panels[0].set(xscale="log", yticks=range(len(kinds)), yticklabels=kinds)
    panels[0].invert_yaxis()
    for axes, at in zip(panels, (1, 1, 1, 0), strict=True):
        axes.axvline(at, color="grey", lw=0.8, ls=":")
    for i, network in enumerate(networks):
        panels[0].plot([], [], MARKERS[i % len(MARKERS)], color=f"C{i}", ms=5, label=network)
    figure.legend(loc="outside lower center", ncols=len(networks), fontsize=9)
    save(figure, path)


def _value(row, measure):
    """A figure and its standard deviation over seeds."""
    if measure == "lost":
        return 100 * row["lost"], 100 * row["accuracy"][1]
    return tuple(row[measure]) if measure == "cosine" else (row[measure], 0.0)
