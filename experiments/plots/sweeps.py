"""The pictures of k_tradeoff.py, ablation.py and frontier.py."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from plots.style import bar_up_to, save

from sltt_jax import parse_rule, sltt_k


def plot_k_tradeoff(rows: list[dict], path: Path, *, title: str):
    """Accuracy over K, a line for every way to draw, and accuracy over the operations of an update."""
    figure, (over_k, over_work) = plt.subplots(1, 2, figsize=(9, 4.2), sharey=True, layout="constrained")
    lines: dict[str, list] = {}
    for row in rows:
        mean, std = (100 * value for value in row["test_accuracy"])
        work = row["flops_per_update"] / 1e9
        rule = parse_rule(row["rule"])
        if isinstance(rule, sltt_k):
            how = rule.scale if rule.scale == "unbiased" else rule.draw
            lines.setdefault(str(how), []).append((rule.k, mean, std, work))
        else:
            line, marker = ("--", "s") if row["rule"] == "sltt" else (":", "^")
            label = f"{row['rule']}: {mean:.1f} +- {std:.1f}"
            over_k.axhline(mean, color="black", ls=line, lw=1)
            over_k.plot([], [], f"{marker}{line}", color="black", lw=1, label=label)  # as in both panels
            over_work.errorbar(work, mean, std, fmt=marker, color="black", capsize=2)
    for i, (name, points) in enumerate(lines.items()):
        k, mean, std, work = np.asarray(sorted(points)).T
        nudge = 0.04 * (i - (len(lines) - 1) / 2)  # so that bars at the same K can be told apart
        over_k.errorbar(k + nudge, mean, std, fmt="o-", capsize=2, label=name)
        over_work.errorbar(work * (1 + nudge / 4), mean, std, fmt="o-", capsize=2)
    over_k.set(xlabel="K: steps with a backward pass", ylabel="test accuracy (%)")
    over_k.set_xticks(sorted({int(k) for points in lines.values() for k, *_ in points}))
    over_work.set(xlabel="operations of an update (GFLOP)\n(points of the same number side by side)")
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    save(figure, path, title)


def plot_ablation(rows: list[dict], path: Path, *, title: str):
    """Accuracy and cosine over T, a column for every surrogate, a line for every tau and rule."""
    surrogates = list(dict.fromkeys(row["surrogate"] for row in rows))
    taus = sorted({row["tau"] for row in rows})
    steps = sorted({row["T"] for row in rows})
    figure, grid = plt.subplots(
        2, len(surrogates), figsize=(2.6 * len(surrogates) + 1, 5), sharex=True, sharey="row",
        squeeze=False, layout="constrained",
    )  # fmt: skip
    for (accuracy, cosine), name in zip(grid.T, surrogates, strict=True):
        for i, tau in enumerate(taus):
            for j, (rule, style) in enumerate((("bptt", ":"), ("sltt", "-"))):
                line = [r for r in rows if (r["surrogate"], r["tau"], r["rule"]) == (name, tau, rule)]
                line.sort(key=lambda r: r["T"])
                place = np.asarray([steps.index(r["T"]) for r in line])
                nudge = 0.06 * (2 * i + j - len(taus) + 0.5)  # so that bars at the same T can be told apart
                mean, std = 100 * np.asarray([r["test_accuracy"] for r in line]).T
                label = f"tau={tau:g} {rule}"
                look = {"fmt": "o", "ls": style, "color": f"C{i}", "capsize": 2, "label": label}
                accuracy.errorbar(place + nudge, mean, std, **look)
                if rule == "sltt":
                    mean, std = np.asarray([r["cosine"] for r in line]).T
                    cosine.errorbar(place, mean, std, fmt="o-", color=f"C{i}", capsize=2)
        accuracy.set_title(name, fontsize=10)
        cosine.set(xlabel="time steps T", xlim=(-0.5, len(steps) - 0.5))
        cosine.set_xticks(range(len(steps)), [str(T) for T in steps])
    grid[0, 0].set_ylabel("test accuracy (%)")
    grid[1, 0].set_ylabel("cosine of SLTT's with\nBPTT's gradient, trained")
    lines, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=len(taus) * 2, fontsize=8)
    save(figure, path, title)


def plot_frontier(rows: list[dict], path: Path, *, title: str):
    """Accuracy over memory, operations and cosine, a point for every rule."""
    figure, panels = plt.subplots(1, 3, figsize=(11, 4.2), sharey=True, layout="constrained")
    markers = "os^vDP*X<>"
    for i, row in enumerate(rows):
        mean, std = (100 * value for value in row["test_accuracy"])
        found = row["temp_bytes"] / 2**20, row["flops_per_update"] / 1e9, row["cosine"][0]
        # Hollow, so that a rule shows where another has the same figures.
        style = {"fmt": markers[i % len(markers)], "color": f"C{i}", "capsize": 3, "mfc": "none"}
        for axes, x, across in zip(panels, found, (None, None, bar_up_to(1, row["cosine"])), strict=True):
            axes.errorbar(x, mean, yerr=std, xerr=across, label=row["rule"], **style)
    panels[0].set(xlabel="temporaries of an update (MiB)", ylabel="test accuracy (%)", xscale="log")
    panels[1].set(xlabel="operations of an update (GFLOP)")
    panels[2].set(xlabel="cosine with BPTT's gradient (bars end at 1)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(rows), 5), fontsize=8)
    save(figure, path, title)
