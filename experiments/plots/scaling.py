"""The picture of scaling.py."""

from pathlib import Path

import matplotlib.pyplot as plt
from plots.style import save


def plot_scaling(rows: list[dict], path: Path, *, title: str):
    """Samples a second over those of one device, and the efficiency, against the number of devices."""
    counts = [row["devices"] for row in rows]
    alone = rows[0]["samples_per_second"] / rows[0]["efficiency"] / rows[0]["devices"]
    figure, (speed, efficiency) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    speed.plot(counts, counts, "--", color="grey", label="perfect")
    speed.plot(counts, [row["samples_per_second"] / alone for row in rows], "o-", label="by bandwidth")
    speed.set(xlabel="devices", ylabel="samples / s over one device")
    speed.set_yscale("log", base=2)
    speed.yaxis.set_major_formatter("{x:g}")
    speed.legend()
    efficiency.plot(counts, [row["efficiency"] for row in rows], "o-")
    efficiency.set(xlabel="devices", ylabel="efficiency", ylim=(0, 1.05))
    for axes in (speed, efficiency):
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
    save(figure, path, title)
