"""The pictures of cost.py."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator
from plots.style import save


def plot_memory(rows: dict[str, list[dict]], path: Path, *, title: str):
    """Memory of an update against the number of time steps, a line for every rule."""
    label = "temporaries of one update (MiB)"
    _plot_over_time(rows, path, lambda row: row["temp_bytes"] / 2**20, label, title)


def plot_time(rows: dict[str, list[dict]], path: Path, *, title: str):
    """Time of an update against the number of time steps, a line for every rule."""
    _plot_over_time(rows, path, lambda row: 1e3 * row["seconds"], "time of one update (ms)", title)


def _plot_over_time(rows, path, value, label, title):
    figure, axes = plt.subplots(figsize=(6.2, 3.8), layout="constrained")
    for i, (name, points) in enumerate(rows.items()):
        # Ever thinner lines and smaller marks, so that rules that lie on each other all show.
        style = {"lw": max(5 - i, 1), "marker": "osD^v"[i % 5], "ms": max(11 - 2 * i, 3)}
        axes.plot([p["T"] for p in points], [value(p) for p in points], label=name, **style)
    axes.set(xlabel="time steps T", ylabel=label, title=title)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sorted({p["T"] for points in rows.values() for p in points}))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.legend(fontsize=8)
    save(figure, path)


def plot_tradeoff(rows: dict[str, list[dict]], path: Path, *, title: str):
    """Memory against time over the chunks of sltt at the largest T, the other rules beside them."""
    T = max(p["T"] for points in rows.values() for p in points)
    at = {name: p for name, points in rows.items() for p in points if p["T"] == T}
    place = lambda p: (1e3 * p["seconds"], p["total_bytes"] / 2**20)
    figure, axes = plt.subplots(figsize=(6.2, 3.8), layout="constrained")
    chunks = sorted((p for name, p in at.items() if name.split("(")[0] == "sltt"), key=lambda p: p["chunk"])
    axes.plot(*zip(*map(place, chunks), strict=True), "o-", label="sltt, by chunk")
    for p in chunks:
        axes.annotate(f"chunk {p['chunk']}", place(p), (6, 5), textcoords="offset points", fontsize=8)
    for name, p in at.items():
        if name.split("(")[0] != "sltt":
            axes.plot(*place(p), "s", label=name)
    axes.set(xlabel="time of one update (ms)", ylabel="memory of one update (MiB)", title=f"{title}, T={T}")
    axes.margins(0.15)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    save(figure, path)
