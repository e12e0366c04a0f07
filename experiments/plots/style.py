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


def spread_below(figure: Sequence[float], most: float) -> list[list[float]]:
    """Of (mean, deviation): the deviation below and above, `[[1], [1]]`, which ends at what is possible."""
    mean, deviation = figure
    return [[deviation], [max(min(deviation, most - mean), 0.0)]]


def save(figure: Figure, path: Path, title: str | None = None):
    """Writes a picture, under a title if there is one, and forgets it."""
    if title is not None:
        figure.suptitle(title)
    figure.savefig(path)
    plt.close(figure)
