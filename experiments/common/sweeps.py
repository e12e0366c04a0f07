"""Many runs side by side: every variant of a run with several seeds, those that are finished left alone."""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
from common.runs import Experiment, Run
from common.train_loop import train
from common.workdirs import check_workdir, prepare, read_summary
from tqdm import tqdm

AnyRun = TypeVar("AnyRun", bound=Run)


def trained(run: Run, change: Callable[[Experiment], Experiment] = lambda experiment: experiment) -> dict:
    """Trains a run, unless it is finished already, and returns its summary.

    Args:
      run: the run.
      change: makes what is trained of what was built of it.

    Raises:
      ValueError, OSError, FloatingPointError, training.Stopped: as `prepare` and `train`.
    """
    with prepare(run) as (experiment, checkpoints):
        summary = read_summary(run.workdir)
        if summary.get("status") == "finished":
            return summary
        print(run.workdir, file=sys.stderr)
        return train(change(experiment), checkpoints)


def check_all(runs: Iterable[Run]):
    """Raises what `check_workdir` raises of one of these, before the first of them trains."""
    for run in runs:
        check_workdir(run)


def sweep(
    base: AnyRun, variants: dict[str, dict[str, Any]], seeds: int
) -> Iterator[tuple[str, list[AnyRun], list[dict]]]:
    """Trains all variants and yields the name of each with its runs, one a seed, and their summaries.

    Args:
      base: what they have in common; its workdir holds theirs, `<workdir>/<variant>/<seed>`.
      variants: settings by name.
      seeds: how many, from the seed of `base` on.

    Raises:
      ValueError, OSError, FloatingPointError, training.Stopped: as `trained`.
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
    check_all(run for of_variant in runs.values() for run in of_variant)
    for name, of_variant in tqdm(runs.items(), unit="variant"):
        yield name, of_variant, [trained(run) for run in of_variant]


def mean_std(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation."""
    return float(np.mean(values)), float(np.std(values))


def entries(summaries: list[dict], *names: str) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of some entries over the seeds."""
    return {name: mean_std([summary[name] for summary in summaries]) for name in names}
