"""The pictures of temporal_limits.py."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from plots.style import save

MEASURES = {"accuracy": "test accuracy (%)", "cosine": "cosine with BPTT's gradient,\nbefore training"}

# The same in all pictures. SLTT is dashed, since it often lies on top of others.
STYLES = {
    "bptt": {"color": "C0", "fmt": "o-"},
    "tbptt(8)": {"color": "C1", "fmt": "o-"},
    "tbptt(4)": {"color": "C2", "fmt": "o-"},
    "tbptt(2)": {"color": "C4", "fmt": "o-"},
    "sltt": {"color": "C3", "fmt": "x--", "zorder": 3},
}


def _lines(axes, rows, x, names):
    """Draws both measures of each rule, with the points of rules side by side: none hides another."""
    for name, place in zip(names, np.linspace(-0.1, 0.1, len(names)), strict=True):
        line = sorted((row for row in rows if row["rule"] == name), key=lambda row: row[x])
        other = {"color": f"C{5 + len(axes[0].containers) % 5}", "fmt": "s-"}
        for one, measure in zip(axes, MEASURES, strict=True):
            values = np.asarray([row[measure] for row in line]) * (100 if measure == "accuracy" else 1)
            mean = values.mean(1)
            spread = np.abs(np.stack([values.min(1), values.max(1)]) - mean)
            xs = [row[x] * (1 + place) for row in line]
            one.errorbar(xs, mean, spread, capsize=2, label=name, **STYLES.get(name, other))


def _finish(figure, grid, path, title):
    lines = dict(zip(*reversed(grid.flat[0].get_legend_handles_labels()), strict=True))
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines), fontsize=9)
    save(figure, path, title)


def plot_delays(rows: list[dict], path: Path, *, title: str):
    """Accuracy and cosine against the delay, a column for every tau; bars are the lowest and highest seed."""
    taus = list(dict.fromkeys(row["tau"] for row in rows))
    longest = sorted(rows, key=lambda row: -row["delay"])  # has all rules: short delays lack long windows
    names = list(dict.fromkeys(row["rule"] for row in longest))
    figure, grid = plt.subplots(
        2, len(taus), figsize=(2.8 * len(taus), 5.4), sharex=True, sharey="row", squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for column, tau in zip(grid.T, taus, strict=True):
        _lines(column, [row for row in rows if row["tau"] == tau], "delay", names)
        one = next(row for row in rows if row["tau"] == tau)
        column[0].axhline(100 * one["without_memory"], color="grey", ls=":", label="without memory")
        column[0].set_title(f"tau = {tau:g} (1 % left after {one['horizon']:.0f} steps)", fontsize=9)
        column[1].set(xlabel="delay (steps)", xscale="symlog")
        column[1].xaxis.set_major_formatter("{x:g}")
        column[1].set_xticks(sorted({row["delay"] for row in rows}))
        column[1].minorticks_off()
    for axes, label in zip(grid[:, 0], MEASURES.values(), strict=True):
        axes.set_ylabel(label)
    _finish(figure, grid, path, title)


def plot_taus(rows: list[dict], path: Path, *, title: str):
    """Accuracy and cosine against tau; bars are the lowest and highest seed."""
    figure, grid = plt.subplots(1, 2, figsize=(8, 3.7), layout="constrained")
    _lines(grid, rows, "tau", list(dict.fromkeys(row["rule"] for row in rows)))
    for axes, label in zip(grid, MEASURES.values(), strict=True):
        axes.set(xlabel="membrane time constant tau (steps)", ylabel=label, xscale="log")
        axes.set_xticks(sorted({row["tau"] for row in rows}))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    _finish(figure, grid, path, title)
