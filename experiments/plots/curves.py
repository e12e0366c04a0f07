"""The picture of a training run."""

from pathlib import Path

import matplotlib.pyplot as plt
from plots.style import save


def plot_curves(records: list[dict], path: Path, *, title: str):
    """Loss and accuracy over the epochs, and test accuracy after each time step."""
    epochs = [r["epoch"] for r in records]
    figure, (loss, accuracy, steps) = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    for split in ("train", "test"):
        loss.plot(epochs, [r[f"{split}_loss"] for r in records], "o-", label=split)
        accuracy.plot(epochs, [100 * r[f"{split}_accuracy"] for r in records], "o-", label=split)
    loss.set(xlabel="epoch", ylabel="loss", yscale="log")
    accuracy.set(xlabel="epoch", ylabel="accuracy (%)")
    per_step = [100 * a for a in records[-1]["test_accuracy_per_step"]]
    steps.plot(range(1, len(per_step) + 1), per_step, "o-", color="C1")
    steps.set(xlabel="time steps seen", ylabel="test accuracy (%)")
    loss.legend()
    save(figure, path, title)
