"""The training loop: epochs of updates, each ended by an evaluation, a line of metrics and a checkpoint."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp
from tqdm import tqdm

from sltt_jax.data.pipeline import Batches
from sltt_jax.training.steps import Evaluation, TrainState

PyTree = Any

METRICS_FILE = "metrics.jsonl"
CHECKPOINTS = "checkpoints"


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`, one an epoch; none if there is no such file."""
    path = workdir / METRICS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def evaluate_all(
    evaluate: Callable[..., Evaluation], state: TrainState, batches: Iterable[PyTree]
) -> dict[str, Any]:
    """Evaluates every sample once.

    Args:
      evaluate: from `make_evaluate`, compiled.
      state: parameters and batch statistics.
      batches: `{"x": [B, ...], "y": [B], "mask": [B]}`, from `padded_batches`.

    Returns:
      `test_loss`, `test_accuracy` (argmax of the sum of outputs over all T steps), `test_accuracy_per_step`
      (of the sum over the first t, t = 1..T) and `firing_rates` (spikes per neuron and step, for every
      layer).

    Raises:
      ValueError: there is no sample.
    """
    total = None
    for batch in batches:
        part = evaluate(state.params, state.variables, batch)
        total = part if total is None else jax.tree.map(np.add, total, part)
    if total is None or not total.samples:
        raise ValueError("there is no sample to evaluate")
    n = float(total.samples)
    return {
        "test_loss": float(total.loss) / n,
        "test_accuracy": float(total.correct[-1]) / n,
        "test_accuracy_per_step": [float(c) / n for c in total.correct],
        "firing_rates": {name: float(np.mean(r)) / n for name, r in total.firing_rates.items()},
    }


def train_epochs(
    state: TrainState,
    update: Callable,
    evaluate: Callable[..., Evaluation],
    train: Batches,
    test: Callable[[], Iterable[PyTree]],
    *,
    epochs: int,
    key: jax.Array,
    workdir: Path,
    resume: bool = False,
) -> Iterator[dict[str, Any]]:
    """Trains and yields one record an epoch, after it is in `metrics.jsonl` and its state in `checkpoints/`.

    Args:
      state: the state to start from; donated to `update`.
      update: from `make_update`, compiled with its state donated.
      evaluate: from `make_evaluate`, compiled.
      train: training batches.
      test: returns the test batches once through, as `evaluate_all` takes them.
      epochs: passes over the training data, in all.
      key: draws augmentation, dropout masks and the steps of SLTT-K.
      workdir: an existing directory.
      resume: go on from the last checkpoint in `workdir`; the records before it are not yielded again.

    Yields:
      `epoch` (from 1), `train_loss`, `train_accuracy`, `seconds` of the epoch, `seconds_per_update` (median
      from one update to the next) and what `evaluate_all` returns.

    Raises:
      FloatingPointError: a loss or gradient is not finite; the checkpoint of the epoch before stays.
      FileNotFoundError: `resume`, and there is no checkpoint.
    """
    steps = train.steps_per_epoch
    keep = ocp.training.preservation_policies.LatestN(1)
    with ocp.training.Checkpointer(
        str((workdir / CHECKPOINTS).absolute()),
        preservation_policy=keep,  # pyright: ignore[reportArgumentType] (orbax differs with itself)
        cleanup_tmp_directories=True,
    ) as checkpoints:
        first = 0
        if resume:
            if checkpoints.latest is None:
                raise FileNotFoundError(f"no checkpoint to resume from in {workdir / CHECKPOINTS}")
            first = checkpoints.latest.step
            # The state tells shapes, types and devices.
            loaded = checkpoints.load_checkpointables(None, {"state": state, "data": None})
            state = loaded["state"]
            train.set_state(loaded["data"])
            lines = [json.dumps(line) + "\n" for line in read_metrics(workdir)[:first]]
            (workdir / METRICS_FILE).write_text("".join(lines))
        else:
            checkpoints.save_checkpointables(0, {"state": state, "data": train.get_state()})
        pause = 0.1 if sys.stderr.isatty() else 60.0  # seconds; a log wants a line an epoch, no more
        with tqdm(total=epochs * steps, initial=first * steps, unit="update", mininterval=pause) as bar:
            for epoch in range(first, epochs):
                began = time.perf_counter()
                state, record = _train_epoch(state, update, islice(train, steps), key, bar, epoch, workdir)
                record |= evaluate_all(evaluate, state, test())
                if not math.isfinite(record["test_loss"]):
                    raise FloatingPointError(_diverged("test loss", record["test_loss"], epoch, workdir))
                record |= {"epoch": epoch + 1, "seconds": time.perf_counter() - began}
                # In this order: what a kill between the two leaves too many, a resume takes away again.
                with open(workdir / METRICS_FILE, "a") as file:
                    file.write(json.dumps(record) + "\n")
                checkpoints.save_checkpointables(epoch + 1, {"state": state, "data": train.get_state()})
                bar.set_postfix_str(_postfix(record))
                yield record


def _train_epoch(state, update, batches, key, bar, epoch, workdir):
    history, times = [], [time.perf_counter()]

    def settle(metrics):
        """Waits for an update and refuses to go on from one that is not finite."""
        metrics = jax.device_get(metrics)
        for name, value in zip(metrics._fields, metrics, strict=True):
            if not np.isfinite(value):
                raise FloatingPointError(
                    _diverged(name, value, epoch, workdir, f"update {len(history) + 1} of ")
                )
        history.append(metrics)
        times.append(time.perf_counter())
        bar.update()

    before = None
    for batch in batches:
        state, metrics = update(state, batch, key)
        # One update behind, so that the device never waits for the host.
        if before is not None:
            settle(before)
        before = metrics
    settle(before)
    loss, accuracy, _ = np.mean(history, axis=0)
    return state, {
        "train_loss": float(loss),
        "train_accuracy": float(accuracy),
        "seconds_per_update": float(np.median(np.diff(times))),
    }


def _diverged(name, value, epoch, workdir, where=""):
    return (
        f"{name} is {value} in {where}epoch {epoch + 1}: training stopped, and the state after epoch {epoch} "
        f"is kept in {workdir / CHECKPOINTS}. A lower learning rate may help."
    )


def _postfix(record):
    return (
        f"epoch {record['epoch']}  loss {record['train_loss']:.4f}  train {record['train_accuracy']:.4f}  "
        f"test {record['test_accuracy']:.4f}"
    )
