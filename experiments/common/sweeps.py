"""Many runs side by side: every variant of a run with several seeds, those that are finished left alone."""

import dataclasses
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from common.runs import SUMMARY, Run, prepare
from tqdm import tqdm
from train import train


def sweep(base: Run, variants: dict[str, dict[str, Any]], seeds: int) -> Iterator[tuple[str, list[dict]]]:
    """Runs all variants and yields each with the summaries of its seeds.

    Args:
      base: what they have in common; its workdir holds theirs, `<workdir>/<variant>/<seed>`.
      variants: settings by name.
      seeds: how many, from the seed of `base` on.

    Raises:
      ValueError, OSError, FloatingPointError, training.Stopped: as `prepare` and `train`.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be >= 1, got {seeds}")
    runs = {
        name: [
            dataclasses.replace(base, **settings, seed=seed, workdir=base.workdir / name / str(seed))
            for seed in range(base.seed, base.seed + seeds)
        ]
        for name, settings in variants.items()
    }  # all of them before the first one trains: a setting that cannot be is an error now
    for name, of_variant in tqdm(runs.items(), unit="variant"):
        yield name, [_summary(run) for run in of_variant]


def _summary(run):
    experiment = prepare(run)  # says so if the workdir holds a run of other settings
    path = run.workdir / SUMMARY
    if path.exists():
        summary = json.loads(path.read_text())
        if summary["status"] == "finished":
            return summary
    print(run.workdir, file=sys.stderr)
    return train(experiment)


def mean_std(summaries: list[dict], entry: str) -> tuple[float, float]:
    """Mean and standard deviation of an entry over the seeds."""
    values = [summary[entry] for summary in summaries]
    return float(np.mean(values)), float(np.std(values))
