"""The picture of which_rule.py."""

import re
from collections import Counter
from pathlib import Path

import matplotlib.pyplot as plt
from plots.style import bar_up_to, save

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
            style = {"fmt": MARKERS[i % len(MARKERS)], "color": f"C{i}", "ms": 5, "capsize": 2}
            shown = [row for row in rows if row["network"] == network and measure in row]
            several, seen = Counter(row["kind"] for row in shown), Counter()
            for row in sorted(shown, key=lambda row: _value(row, measure)[0]):
                kind, (value, spread) = row["kind"], _value(row, measure)
                # Each network has a height of its own, so that equal figures do not hide each other.
                y = kinds.index(kind) + 0.12 * (i - (len(networks) - 1) / 2)
                axes.errorbar(value, y, xerr=spread, **style)
                if several[kind] > 1 and measure != "operations":  # which lie on one another
                    up = 1 if seen[kind] % 2 else -1  # above and below in turn, since neighbours may be near
                    axes.annotate(
                        _numbers(row["rule"]), (value, y), (0, 4 * up), textcoords="offset points",
                        fontsize=7, ha="center", va="bottom" if up > 0 else "top",
                    )  # fmt: skip
                seen[kind] += 1
        axes.set(xlabel=label)
    panels[0].set(xscale="log", yticks=range(len(kinds)), yticklabels=kinds)
    panels[0].set_ylim(len(kinds) - 0.5, -0.5)
    for axes, at in zip(panels, (1, 1, 1, 0), strict=True):
        axes.axvline(at, color="grey", lw=0.8, ls=":")
    for i, network in enumerate(networks):
        panels[0].plot([], [], MARKERS[i % len(MARKERS)], color=f"C{i}", ms=5, label=network)
    figure.legend(loc="outside lower center", ncols=len(networks), fontsize=9)
    save(figure, path)


def _numbers(rule):
    """Window or chunk of a rule as it is spelt: "10" of "bptt(10, bits=True)"."""
    return re.sub(r"^\w+\(|, \w+=.*|\)$", "", rule)


def _value(row, measure):
    """A figure and its standard deviation over seeds, below and above."""
    if measure == "cosine":
        return row["cosine"][0], bar_up_to(1, row["cosine"])
    value, spread = (100 * row["lost"], 100 * row["accuracy"][1]) if measure == "lost" else (row[measure], 0)
    return value, [[spread], [spread]]
