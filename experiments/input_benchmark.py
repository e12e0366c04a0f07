"""Does input starve the update? The time of the host's pipeline, of the update, and of the loop of both.

    python experiments/input_benchmark.py --data-dir data

takes about six minutes on two cores. There are images in memory (MNIST), frames in memory (N-MNIST), and a
stream of JPEG files as large as ImageNet's, which worker processes decode and crop for NF-ResNet-34 of both
of the paper's stages; these files are made up, and so is MNIST or N-MNIST where it is not in the data
directory. Writes inputs.json.

The last column says how long the device had nothing to do for want of a batch, as a share of the loop. On a
CPU the pipeline has the cores of the device: there the loop may take longer than the update without waiting.
"""

import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
from common.command import check_numbers, command, write_json
from common.data_sets import WORKERS
from common.photographs import photographs
from common.presets import PRESETS
from common.runs import Experiment, Run, build, training_batches
from common.train_loop import compile_update
from tqdm import tqdm

from sltt_jax.data import Batch
from sltt_jax.data.images.imagenet import ImageStream
from sltt_jax.training import TrainState

Input = Literal["mnist", "nmnist", "imagenet_stage1", "imagenet_stage2"]
PARTS = "pipeline", "update", "loop"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the measurement.

    Attributes:
      inputs: the presets whose input, network and rule are taken.
      batches: of each that are timed.
      warmup: batches before them; what workers have ready at the start is among these.
      data_dir: directory of the data sets.
      reduced: the recipes made small enough for two cores.
      photographs: made-up JPEG files.
      batch_size: of photographs.
      width: multiplies the channels of NF-ResNet-34.
      workers: processes that decode photographs; 0 uses threads.
      workdir: directory of what is written.
    """

    inputs: tuple[Input, ...] = get_args(Input)
    batches: int = 50
    warmup: int = 12
    data_dir: Path = Path("data")
    reduced: bool = False
    photographs: int = 256
    batch_size: int = 16
    width: float = 0.125
    workers: int = WORKERS
    workdir: Path = Path("runs/inputs")

    def __post_init__(self):
        check_numbers(self, "batches", "warmup", "batch_size")
        check_numbers(self, "workers", least=0)
        check_numbers(self, "width", least=1 / 64, most=64)
        if self.photographs < self.batch_size:
            raise ValueError(
                f"photographs must be at least one batch of {self.batch_size}, got {self.photographs}"
            )


@command(Settings, __doc__)
def main(settings: Settings):
    settings.workdir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: prepare(name, settings, Path(folder) / "tfds") for name in settings.inputs}
        with tqdm(total=len(PARTS) * len(runs), unit="part") as bar:
            # Let go of, so that its workers end with it.
            rows = {name: measure(runs.pop(name), settings, bar) for name in list(runs)}
    device = {"device": jax.devices()[0].device_kind, "cpu_cores": os.cpu_count(), "jax": jax.__version__}
    write_json(settings.workdir / "inputs.json", {**device, "batches": settings.batches, "inputs": rows})
    for name, row in rows.items():
        data = "made up" if row["made"] else "real"
        shape = " x ".join(map(str, row["batch"]))
        update = f"{row['network']}, {row['rule']}, T={row['T']}"
        print(f"{name}: {data}, {shape} ({row['batch_mib']:.2f} MiB); {update}")
    print(table(rows))
    print(f"files  {settings.workdir}: inputs.json")


def prepare(name: Input, settings: Settings, folder: Path) -> Experiment:
    """Opens the run of a preset on one device; photographs are made in `folder`."""
    data = PRESETS[name]().data
    common: dict[str, Any] = {"reduced": settings.reduced, "data_dir": settings.data_dir, "devices": 1}
    if data != "imagenet":
        return build(Run.of(name, **common, made=not (settings.data_dir / data).is_dir()))
    # One batch of made-up arrays gives the shapes.
    B = settings.batch_size
    few = {"batch_size": B, "width": settings.width, "train_samples": B, "test_samples": 1}
    experiment = build(Run.of(name, **few, **common, made=True))
    run = experiment.run
    records = photographs(folder, settings.photographs, seed=run.seed)
    train = ImageStream(records, run.batch_size, seed=run.seed, workers=settings.workers)
    return experiment._replace(data=experiment.data._replace(train=train))


def time_batches(batches: Iterator[Batch], count: int) -> list[float]:
    """Seconds from one batch on the device to the next, with nothing else going on."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        jax.block_until_ready(next(batches))
        times.append(time.perf_counter() - began)
    return times


def time_loop(
    update: Callable, state: TrainState, batches: Iterator[Batch], count: int
) -> tuple[TrainState, list[float], list[float]]:
    """Times the loop of training: the host takes a batch while the device is at work on the one before.

    Returns:
      The state, seconds from one update to the next `[count]`, and of these the seconds in which the last
      update was done and the next batch was not there `[count]`; 0 at the first.
    """

    def finished(metrics):
        jax.block_until_ready(metrics)
        return time.perf_counter()

    times, taken, done = [], [], []
    with ThreadPoolExecutor(1) as watch:
        began = time.perf_counter()
        for batch in islice(batches, count):
            taken.append(time.perf_counter())
            state, metrics = update(state, batch)
            done.append(watch.submit(finished, metrics))
            if len(done) > 1:
                done[-2].result()  # one update behind, as in training
            times.append(time.perf_counter() - began)
            began += times[-1]
    waits = [max(0.0, t - d.result()) for t, d in zip(taken[1:], done, strict=False)]
    return state, times, [0.0, *waits]


def measure(experiment: Experiment, settings: Settings, bar: tqdm) -> dict:
    """Milliseconds of the pipeline, the update and the loop, and the share of the loop spent waiting."""
    batches, count = training_batches(experiment), settings.warmup + settings.batches
    state = experiment.initial_state(jax.random.key(experiment.run.seed))
    state, update, _ = compile_update(experiment, state)
    bar.set_postfix_str(experiment.run.preset)
    seconds = {"pipeline": time_batches(batches, count)}
    bar.update()
    state, seconds["update"], _ = time_loop(update, state, repeat(next(batches)), count)
    bar.update()
    _, seconds["loop"], waits = time_loop(update, state, batches, count)
    bar.update()
    kept = {name: np.array(values[settings.warmup :]) for name, values in seconds.items()}
    run, x = experiment.run, experiment.data.batch["x"]
    return {
        "made": run.made,
        "batch": [run.batch_size, *x.shape[1:]],
        "batch_mib": x[: run.batch_size].nbytes / 2**20,
        "network": run.model if run.model == "convnet" else f"{run.model}, width {run.width:g}",
        "rule": str(experiment.rule),
        "T": run.T,
        **{f"{name}_ms": summary(1e3 * values) for name, values in kept.items()},
        "waiting": sum(waits[settings.warmup :]) / float(kept["loop"].sum()),
    }


def summary(values: np.ndarray) -> dict[str, float]:
    """Median, 95th percentile and mean.

    Workers deliver in bursts: there the mean, not the median, tells how many batches a second come.
    """
    return {
        "median": float(np.median(values)),
        "p95": float(np.percentile(values, 95)),
        "mean": float(values.mean()),
    }


def table(rows: dict[str, dict]) -> str:
    """Writes a table of milliseconds a batch: median, 95th percentile and mean."""
    lines = [f"{'ms a batch':16}" + "".join(f"{part:>27}" for part in PARTS) + f"{'device':>9}"]
    lines.append(" " * 16 + f"{'median':>11}{'95 %':>8}{'mean':>8}" * len(PARTS) + f"{'waits':>9}")
    for name, row in rows.items():
        cells = (row[f"{part}_ms"] for part in PARTS)
        numbers = "".join(f"{c['median']:11.2f}{c['p95']:8.2f}{c['mean']:8.2f}" for c in cells)
        lines.append(f"{name:16}{numbers}{row['waiting']:9.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
