"""The pictures of gradient_agreement.py."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from plots.style import save

NOTHING = float("nan")
ROUNDING = 1e-7  # of a cosine in float32; what is below is drawn there


def plot_agreement(rows: list[dict], path: Path, *, title: str):
    """Distance over training: a panel for every rule, a line for every T; and by layer at the largest T.

    It is 1 - cosine, on a logarithmic axis: a cosine of 0.9999 and one of 0.9 are both to be read off.
    """
    steps = sorted({row["T"] for row in rows})
    lines = {T: sorted((r for r in rows if r["T"] == T), key=lambda r: r["epoch"]) for T in steps}
    names = list(lines[steps[-1]][0]["rules"])  # at the largest T no rule is left out
    down = (len(names) + 2) // 2
    figure, grid = plt.subplots(
        down, 2, figsize=(8.2, 3.2 * down + 0.4), sharex=True, sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes, name in zip(grid.flat, names, strict=False):
        for i, (T, line) in enumerate(lines.items()):
            if there := [row for row in line if name in row["rules"]]:
                away = [_distance(row["rules"][name]["overall"]["cosine"]) for row in there]
                axes.plot([row["epoch"] for row in there], away, "o-", color=f"C{i}", label=f"T={T}")
        axes.set_title(f"{name}, all parameters", fontsize=10)
    axes, line = grid.flat[len(names)], lines[steps[-1]]
    epochs = [row["epoch"] for row in line]
    for color, label, layer in _by_depth(list(line[0]["rules"][names[0]]["layers"])):
        away = [_distance(row["rules"][names[0]]["layers"][layer]["cosine"]) for row in line]
        axes.plot(epochs, away, "o-", color=color, label=label)
    axes.set_title(f"{names[0]}, by layer, T={steps[-1]}", fontsize=10)
    for axes in grid.flat[: len(names) + 1]:
        axes.set(xlabel="epochs", yscale="log")
        axes.tick_params(labelbottom=True)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=8)
    for axes in grid[:, 0]:
        axes.set_ylabel("1 - cosine with BPTT's gradient")
    for axes in grid.flat[len(names) + 1 :]:
        axes.remove()
    save(figure, path, title)


def plot_steps(ends: dict, path: Path, *, tau: float, title: str):
    """By layer, at the start and at the end: cosine of the error signals at each step, and the lag norms."""
    figure, grid = plt.subplots(2, 2, figsize=(8.5, 6), sharex="col", sharey="col", layout="constrained")
    lags = np.arange(1, ends["T"])
    for (cosine, temporal), when in zip(grid, ("start", "end"), strict=True):
        for i, (color, label, layer) in enumerate(_by_depth(list(ends[when]["cosine"]))):
            size = max(6 - 3 * i, 2)  # ever smaller, so that layers that lie on each other all show
            values = [NOTHING if v is None else v for v in ends[when]["cosine"][layer]]
            cosine.plot(range(1, len(values) + 1), values, "o-", color=color, label=label)
            norms = ends[when]["lags"][layer]
            for kind, style in (("spectral", "-"), ("mean", ":")):
                shown = [v or NOTHING for v in norms[kind]]
                temporal.plot(lags, shown, f"o{style}", color=color, ms=size, lw=size / 2)
        bound = (1 - 1 / tau) ** lags
        temporal.plot(lags, bound, "k--", lw=1, label="$(1 - 1/\\tau)^k$")
        temporal.plot([], [], "-", color="0.5", label="largest")
        temporal.plot([], [], ":", color="0.5", label="mean")
        cosine.set_ylabel(f"{when} of training\n\ncosine with BPTT's error signal")
        temporal.set(yscale="log", ylabel="$|\\partial u_{t+k} / \\partial u_t|$")
    for axes, label in zip(grid[1], ("time step t", "lag k (steps)"), strict=True):
        axes.set_xlabel(label)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in grid[0]:
        axes.legend(fontsize=8)
    save(figure, path, title)


def _distance(cosine):
    return NOTHING if cosine is None else max(1 - cosine, ROUNDING)


def _by_depth(layers):
    """Colour, label and name of each layer; of many, some labels say which colour is where."""
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(layers)))
    labelled = layers if len(layers) <= 6 else [layers[0], layers[len(layers) // 2], layers[-1]]
    return [(c, name if name in labelled else None, name) for c, name in zip(colors, layers, strict=True)]
