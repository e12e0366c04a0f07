"""The pictures of benchmark.py."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from peers.tables import BASE, NAMES, best, chunk_of, collect
from peers.workloads import Workload
from plots.style import save

LEAST_CHUNKS = 5

# What each bar is the fastest of: peer and rules, a regular expression.
BARS = {
    "sltt_jax: SLTT, chunk 1": ("sltt_jax", "sltt", "#6baed6"),
    "sltt_jax: SLTT, best chunk": ("sltt_jax", r"sltt(\(.*)?", "C0"),
    "sltt_jax, all devices: SLTT, best chunk": ("sltt_jax_devices", r"sltt(\(.*)?", "#08306b"),
    "sltt_jax: BPTT, best chunk": ("sltt_jax", r"bptt.*", "#c6dbef"),
    "PyTorch by hand: BPTT": ("pytorch", "bptt", "0.45"),
    **{
        f"{NAMES[peer]}: faster rule": (peer, ".*", color)
        for peer, color in (("spikingjelly", "C1"), ("snntorch", "C2"), ("spyx", "C3"), ("plain_flax", "C4"))
    },
}


def plot_benchmark(rows: Iterable[dict], workloads: Iterable[str], path: Path):
    """Time of an update over that of PyTorch's SLTT by hand, float32, a group of bars for every workload.

    A cross stands where a bar is missing because nothing was measured; no bar and no cross is a ratio of 1.
    """
    found = collect(rows)
    base = {w: found.get((w, "float32", *BASE), {}).get("median") for w in workloads}
    base = {w: median for w, median in base.items() if median is not None}
    if not base:
        return
    figure, axes = plt.subplots(figsize=(9.5, 4.2), layout="constrained")
    bars = {
        label: {
            j: found[w, "float32", peer, rule]["median"] / base[w]
            for j, w in enumerate(base)
            if (rule := best(found, w, "float32", peer, rules)) is not None
        }
        for label, (peer, rules, _) in BARS.items()
    }
    bars = {label: ratios for label, ratios in bars.items() if ratios}
    width = 0.86 / len(bars)
    missing = []
    fastest: dict[int, tuple[float, float]] = {}  # of this library under SLTT: ratio and place
    for i, (label, ratios) in enumerate(bars.items()):
        peer, _, color = BARS[label]
        offset = (i + 0.5) * width - 0.43
        missing += [j + offset for j in range(len(base)) if j not in ratios]
        x, ratio = np.asarray([*ratios]) + offset, np.asarray([*ratios.values()])
        axes.bar(x, ratio - 1, width, bottom=1, color=color, label=label)
        if "sltt_jax" in peer and "SLTT" in label:
            mine = {j: (ratios[j], j + offset) for j in ratios}
            fastest |= {j: min(bar, fastest.get(j, bar)) for j, bar in mine.items()}
    for value, at in fastest.values():
        axes.annotate(
            f"{value:.2f}", (at, value), (0, -2 if value < 1 else 2), textcoords="offset points",
            ha="center", va="top" if value < 1 else "bottom", fontsize=8,
        )  # fmt: skip
    axes.axhline(1, color="black", lw=1, label="PyTorch by hand: SLTT")
    if missing:
        axes.plot(missing, np.ones(len(missing)), "x", color="0.4", ms=4, label="not measured")
    axes.set_yscale("log", base=2)
    low, high = axes.get_ylim()
    ticks = 2.0 ** np.arange(np.floor(np.log2(low)), np.ceil(np.log2(high)) + 1)
    axes.set(ylim=(ticks[0], ticks[-1]), ylabel="time of an update,\nPyTorch's SLTT by hand = 1")
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks(range(len(base)), [w.replace("_", "\n") for w in base], fontsize=8)
    axes.grid(axis="x", visible=False)
    axes.legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    save(figure, path)


def plot_chunks(rows: Iterable[dict], workloads: Mapping[str, Workload], path: Path):
    """Time and temporaries of an update against `sltt(chunk)`, of workloads with many chunks."""
    found = collect(rows)
    curves = {}
    for name in workloads:
        points = [
            (chunk, 1e3 * row["median"], row["temp_bytes"] / 2**20)
            for (w, *how, rule), row in found.items()
            if (w, *how) == (name, "float32", "sltt_jax") and rule.startswith("sltt")
            if (chunk := chunk_of(rule)) and "median" in row
        ]
        if len(points) >= LEAST_CHUNKS:
            curves[name] = sorted(points)
    if not curves:
        return
    figure, grid = plt.subplots(
        1, len(curves), figsize=(4.4 * len(curves), 3.5), squeeze=False, layout="constrained"
    )
    for axes, (name, points) in zip(grid[0], curves.items(), strict=True):
        chunk, time, memory = np.asarray(points).T
        of_memory = axes.twinx()
        axes.plot(chunk, time, "o-", color="C0")
        of_memory.plot(chunk, memory, "s--", color="C1")
        axes.set(xlabel="chunk (time steps)", xscale="log", ylim=(0, 1.1 * max(time)))
        axes.set_ylabel("time of an update (ms)", color="C0")
        axes.set_xticks(chunk, [f"{c:g}" for c in chunk])
        axes.minorticks_off()
        of_memory.set(ylim=(0, 1.1 * max(memory)))
        of_memory.set_ylabel("temporary memory (MiB), dashed", color="C1")
        of_memory.grid(visible=False)
        of_memory.spines.right.set_visible(True)
        workload = workloads[name]
        axes.set_title(f"{workload.text}\nbatch {workload.batch}, T={workload.T}", fontsize=9)
    save(figure, path)
