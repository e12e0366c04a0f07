"""The picture of a training run."""

import math
from pathlib import Path

import matplotlib.pyplot as plt
from plots.style import save


def plot_curves(records: list[dict], path: Path, *, title: str):
    """Loss and accuracy over the epochs, and test accuracy after each time step."""
    epochs = [r["epoch"] for r in records]
    figure, (loss, accuracy, steps) = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    for split, colour in (("train", "C0"), ("test", "C1")):
        loss.plot(epochs, [r[f"{split}_loss"] for r in records], "o-", color=colour, label=split)
        if f"{split}_accuracy" in records[-1]:  # in training it is not known where each step has a label
            accuracy.plot(epochs, [100 * r[f"{split}_accuracy"] for r in records], "o-", color=colour)
    loss.set(xlabel="epoch", ylabel="loss", yscale="log")
    accuracy.set(xlabel="epoch", ylabel="accuracy (%)")
    per_step = [math.nan if a is None else 100 * a for a in records[-1]["test_accuracy_per_step"]]
    steps.plot(range(1, len(per_step) + 1), per_step, "o-" if len(per_step) <= 50 else "-", color="C1")
    steps.set(xlabel="time step", ylabel="test accuracy (%)")
    loss.legend()
    save(figure, path, title)
