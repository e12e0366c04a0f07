"""The picture of activity.py."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from plots.style import save


def plot_activity(found: dict, path: Path, *, title: str):
    """Firing rate of each layer over time, and operations of each layer of weights beside an ANN's."""
    layers, weights = found["layers"], found["weights"]
    height = max(3.6, 0.6 + 0.2 * len(weights))
    figure, (rates, work) = plt.subplots(1, 2, figsize=(9, height), layout="constrained")
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(layers)))
    names = list(layers)
    for color, (name, layer) in zip(colors, layers.items(), strict=True):
        # With many layers the first, the middle and the last say which colour is where.
        shown = len(names) <= 8 or name in (names[0], names[len(names) // 2], names[-1])
        steps = range(1, len(layer["rates"]) + 1)
        label = name if shown else None
        rates.plot(steps, [100 * r for r in layer["rates"]], "o-", color=color, label=label)
    rates.set(xlabel="time step", ylabel="neurons that spike (%)")
    rates.set_ylim(bottom=0)
    rates.xaxis.get_major_locator().set_params(integer=True)
    rates.legend(fontsize=8, title="layers, first to last" if len(names) > 8 else None)
    place = np.arange(len(weights))
    work.barh(place - 0.2, [w["macs"] for w in weights.values()], 0.4, color="0.7", label="MACs of the ANN")
    spikes = [0 if w["analogue_input"] else w["operations"] for w in weights.values()]
    steps = len(next(iter(layers.values()))["rates"])
    analogue = [steps * w["macs"] if w["analogue_input"] else 0 for w in weights.values()]
    work.barh(place + 0.2, spikes, 0.4, color="C0", label="additions at spikes")
    work.barh(place + 0.2, analogue, 0.4, color="C3", label="MACs of analogue input")
    work.set_yticks(place, list(weights), fontsize=8 if len(weights) <= 12 else 6)
    work.invert_yaxis()
    work.set(xlabel=f"operations of one sample (spiking: all {steps} steps)", xscale="log")
    work.legend(fontsize=7, ncols=3, loc="lower center", bbox_to_anchor=(0.4, 1.0), columnspacing=1.2)
    save(figure, path, title)
