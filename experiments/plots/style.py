"""The look of all pictures."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

plt.rcParams.update(
    {
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "figure.dpi": 130,
        "font.size": 10,
        "grid.alpha": 0.3,
        "legend.frameon": False,
        "lines.markersize": 4,
    }
)


def bar_up_to(most: float, figure: Sequence[float]) -> list[list[float]]:
    """Makes of (mean, deviation) the lengths of its error bar, `[[below], [above]]`, which ends at `most`."""
    mean, deviation = figure
    return [[deviation], [max(min(deviation, most - mean), 0.0)]]


def save(figure: Figure, path: Path, title: str | None = None):
    """Writes a picture, under a title if there is one, and forgets it."""
    if title is not None:
        figure.suptitle(title)
    figure.savefig(path)
    plt.close(figure)
