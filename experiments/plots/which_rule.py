"""The picture of which_rule.py."""

import re
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
from plots.style import save, spread_below

PANELS = {
    "temporaries": "temporaries over bptt's",
    "operations": "operations over bptt's",
    "cosine": "cosine with\nBPTT's gradient",
    "lost": "accuracy lost to bptt\n(percentage points)",
}
MARKERS = "os^vDPX"


def plot_rules(rows: list[dict], path: Path):
    """Memory, operations, cosine and accuracy, a line for every kind of rule, a marker for every network.

    Where a network has several rules of a kind, their windows or chunks stand at the markers.
    """
    kinds, networks = sorted({row["kind"] for row in rows}), list(dict.fromkeys(r["network"] for r in rows))
    figure, panels = plt.subplots(
        1, len(PANELS), figsize=(11, 1.8 + 0.42 * len(kinds)), sharey=True, layout="constrained"
    )
    for axes, (measure, label) in zip(panels, PANELS.items(), strict=True):
        for i, network in enumerate(networks):
            shown = [row for row in rows if row["network"] == network and measure in row]
            # Each network has a height of its own, so that equal figures do not hide each other.
            ys = [kinds.index(row["kind"]) + 0.12 * (i - (len(networks) - 1) / 2) for row in shown]
            several, drawn = Counter(row["kind"] for row in shown), Counter()
            pairs = sorted(zip(shown, ys, strict=True), key=lambda pair: _value(pair[0], measure)[0])
            for row, y in pairs:
                value, spread = _value(row, measure)
                style = {"fmt": MARKERS[i % len(MARKERS)], "color": f"C{i}", "ms": 5, "capsize": 2}
                axes.errorbar(value, y, xerr=spread, **style)
                if several[row["kind"]] > 1 and measure != "operations":  # these lie on one another
                    numbers = re.sub(r"^\w+\(|, \w+=.*|\)$", "", row["rule"])
                    aside = (
                        {"xytext": (0, 4), "va": "bottom"}
                        if drawn[row["kind"]] % 2
                        else {"xytext": (0, -4), "va": "top"}
                    )
                    axes.annotate(
                        numbers, (value, y), fontsize=7, textcoords="offset points", ha="center", **aside
                    )
                drawn[row["kind"]] += 1
        axes.set(xlabel=label)
    panels[0].set(xscale="log", yticks=range(len(kinds)), yticklabels=kinds)
    panels[0].set_ylim(len(kinds) - 0.5, -0.5)
    for axes, at in zip(panels, (1, 1, 1, 0), strict=True):
        axes.axvline(at, color="grey", lw=0.8, ls=":")
    for i, network in enumerate(networks):
        panels[0].plot([], [], MARKERS[i % len(MARKERS)], color=f"C{i}", ms=5, label=network)
    figure.legend(loc="outside lower center", ncols=len(networks), fontsize=9)
    save(figure, path)


def _value(row, measure):
    """A figure and its standard deviation over seeds, below and above."""
    if measure == "cosine":
        return row["cosine"][0], spread_below(row["cosine"], 1.0)
    value, spread = (100 * row["lost"], 100 * row["accuracy"][1]) if measure == "lost" else (row[measure], 0)
    return value, [[spread], [spread]]
