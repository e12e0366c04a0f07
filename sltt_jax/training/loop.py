"""Training loop: epochs of updates, each ended by an evaluation, a line of metrics and a checkpoint."""

import dataclasses
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from sltt_jax.blocks import PyTree
from sltt_jax.data.pipeline import Batches
from sltt_jax.training.checkpoints import CHECKPOINTS, Checkpoints
from sltt_jax.training.metrics import METRICS_FILE, append_metrics, rewrite_metrics
from sltt_jax.training.parallel import check_replicated, samples_of
from sltt_jax.training.processes import on_first
from sltt_jax.training.states import TrainState
from sltt_jax.training.steps import Evaluation
from sltt_jax.training.stopping import Stopped, StopRequests


def evaluate_all(
    evaluate: Callable[..., Evaluation], state: TrainState, batches: Iterable[PyTree]
) -> dict[str, Any]:
    """Evaluates every sample once.

    Args:
      evaluate: from `make_evaluate`, compiled.
      state: parameters and batch statistics.
      batches: `{"x": [B, ...], "y": [B], "mask": [B]}`, as `evaluate` takes them, from `padded_batches`.

    Returns:
      `loss`, `accuracy` (argmax of the sum of outputs over all T steps), `accuracy_per_step` (of the sum over
      the first t, t = 1..T) and `firing_rates` (spikes per neuron and step, for every layer). Where there are
      weights, the loss is weighted with them. Of `PerStep` targets the accuracy is that of the argmax at each
      step, over all samples and steps that count, and None at a step where none does. With metrics of one's
      own there are those, `<name>` and `<name>_per_step`, in place of the accuracies.

    Raises:
      ValueError: there is no sample, or all have a weight of 0.
    """
    total = None
    for batch in batches:
        part = jax.device_get(evaluate(state.params, state.variables, batch))
        total = part if total is None else jax.tree.map(np.add, total, part)
    weight = 0.0 if total is None else total.samples if total.weight is None else total.weight
    if total is None or not weight:
        raise ValueError("there is no sample to evaluate, or all have a weight of 0")
    n = float(total.samples)
    return {
        "loss": float(total.loss) / float(weight),
        **_means(total),
        "firing_rates": {name: float(np.mean(r)) / n for name, r in total.firing_rates.items()},
    }


def _means(total):
    found, per_step = {}, total.answers is not None
    for name, sums in total.values.items():
        sums = np.asarray(sums, np.float64)
        answers = np.broadcast_to(total.answers if per_step else total.samples, sums.shape)
        of_steps = [float(s / n) if n else None for s, n in zip(sums, answers, strict=True)]
        found[name] = float(sums.sum() / answers.sum()) if per_step else of_steps[-1]
        found[f"{name}_per_step"] = of_steps
    return found


def train_epochs(
    state: TrainState,
    update: Callable,
    evaluate: Callable[..., Evaluation],
    train: Batches,
    held_out: Mapping[str, Callable[[], Iterable[PyTree]]],
    *,
    epochs: int,
    checkpoints: Checkpoints,
    workdir: Path,
    save_every: int | None = None,
    score: str | None = None,
    stop: StopRequests | None = None,
) -> Iterator[dict[str, Any]]:
    """Trains, from the last checkpoint if there is one, and yields one record an epoch.

    A record is yielded when it is in `metrics.jsonl` and its checkpoint is being written, which holds the
    records so far as well. A run that was cut off, at any moment, and called again ends with the same bits as
    one that was not. With several processes all must call it, and the first writes.

    Args:
      state: the state to start from; donated to `update`.
      update: from `make_update`, compiled with its state donated.
      evaluate: from `make_evaluate`, compiled.
      train: training batches.
      held_out: by name ("test", "validation") what returns their batches, as `evaluate_all` takes them.
      epochs: passes over the training data, in all.
      checkpoints: of `workdir`, open.
      workdir: an existing directory.
      save_every: updates from one checkpoint to the next within an epoch; None: at its end alone.
      score: the entry of the records by which the best checkpoint is kept, "validation_accuracy".
      stop: asked after every update; None: nothing but an exception stops the run.

    Yields:
      `epoch` (from 1), `train_loss`, `train_accuracy`; for every name in `held_out` `<name>_loss`,
      `<name>_accuracy`, `<name>_accuracy_per_step` (or what `metrics` there are); `firing_rates` (of the
      last); `seconds` in all, `data_seconds` (of waiting for batches), `update_seconds` and
      `evaluation_seconds`; `seconds_per_update` (median from one to the next) and `samples_per_second` of
      training.

    Raises:
      FloatingPointError: a loss or gradient is not finite; the last checkpoint stays.
      OSError: a checkpoint or the metrics could not be written; the checkpoint before stays.
      Stopped: `stop` was asked; the state is saved.
      ValueError: all checkpoints are damaged, or gone while their metrics are there; or the last one is of
        other batches; or the records have no number `score`, which is known before the first update where no
        entry begins so, and else after the first epoch, which is saved.
    """
    _check_names(held_out, score)
    steps, first_process = train.steps_per_epoch, jax.process_index() == 0
    epoch, records, metrics_file = _Epoch(), [], workdir / METRICS_FILE
    # Each has batch statistics and dropout masks of its own, and sums over several are in another order.
    devices = len(state.step.sharding.device_set) * jax.process_count()
    loaded = checkpoints.load(state._asdict())
    if loaded is not None:
        parts, progress = loaded
        train.set_state(progress["data"])
        if (earlier := progress["devices"]) != devices:
            warnings.warn(
                f"{workdir}: trained on {earlier} devices so far, now on {devices}: results will not be "
                "those of either alone",
                stacklevel=2,
            )
        state, epoch = TrainState(**jax.tree.map(jnp.asarray, parts)), _Epoch.of(progress["epoch"])
        records = progress["records"]
        on_first(lambda: rewrite_metrics(workdir, records))
    elif metrics_file.exists() and metrics_file.stat().st_size:
        raise ValueError(f"{metrics_file} is of a run whose checkpoints are gone; move it away to start anew")

    def save(value=None):
        # Updates and evaluations so far.
        number = epoch.number * (steps + 1) + epoch.updates
        progress = {
            "data": train.get_state(), "epoch": dataclasses.asdict(epoch), "records": records,
            "devices": devices,
        }  # fmt: skip
        checkpoints.save(number, state._asdict(), progress, score=value)

    if loaded is None:
        save()
        checkpoints.wait()  # there is a checkpoint before there are metrics
    pause = 0.1 if sys.stderr.isatty() else 60.0  # seconds; a log wants a line an epoch, no more
    done, quiet = epoch.number * steps + epoch.updates, not first_process
    with tqdm(total=epochs * steps, initial=done, unit="update", mininterval=pause, disable=quiet) as bar:
        while epoch.number < epochs:
            before, began, times = None, time.perf_counter(), []
            while epoch.updates < steps:
                batch = next(train)
                epoch.data_seconds += time.perf_counter() - began
                state, metrics = update(state, batch)
                epoch.updates += 1
                epoch.samples += samples_of(batch) * jax.process_count()
                # One update behind, so that the device never waits for the host.
                if before is not None:
                    epoch.add(before, epoch.updates - 1, workdir)
                before = metrics
                asked = stop.asked(epoch.number * steps + epoch.updates) if stop is not None else None
                due = save_every is not None and epoch.updates % save_every == 0
                if epoch.updates == steps or asked is not None or due:
                    epoch.add(before, epoch.updates, workdir)
                    before = None
                times.append(time.perf_counter() - began)
                epoch.train_seconds += times[-1]
                began += times[-1]
                if asked is not None or (due and epoch.updates < steps):
                    save()
                if asked is not None:
                    checkpoints.wait()
                    raise Stopped(asked)
                bar.update()
            check_replicated(state.params)
            record = epoch.record(times)
            record |= _evaluate_held_out(evaluate, state, held_out, epoch.number, workdir)
            record["seconds"] = epoch.train_seconds + record["evaluation_seconds"]
            if score is not None and not isinstance(record.get(score), int | float):
                if times:  # updates of this epoch, so that another score goes on from here
                    save()
                    checkpoints.wait()
                numbers = ", ".join(name for name, value in record.items() if isinstance(value, int | float))
                raise ValueError(f"score must be a number of the records, one of {numbers}; got {score!r}")
            # In this order: what a kill between the two leaves too many, a resume takes away again.
            if first_process:
                append_metrics(workdir, record)
            epoch, records = _Epoch(epoch.number + 1), [*records, record]
            save(None if score is None else record[score])
            bar.set_postfix_str(_postfix(record))
            yield record
    checkpoints.wait()


def _check_names(held_out, score):
    """Refuses what is wrong before there is a record to look at."""
    if "train" in held_out:
        raise ValueError('what is held out cannot be named "train": records have train_loss of training')
    beginnings = tuple(f"{name}_" for name in ("train", *held_out))
    if score is not None and not score.startswith(beginnings):
        wanted = " or ".join(f"{beginning}..." for beginning in beginnings)
        raise ValueError(f"score must be a number of the records, {wanted}; got {score!r}")


@dataclasses.dataclass
class _Epoch:
    """Epoch that is being trained.

    Attributes:
      number: from 0.
      updates, samples: done in it.
      loss: sum over those.
      values: by name of a metric, its sum over those that count and how many these are: updates, or samples
        and steps where there are weights or `PerStep` targets.
      train_seconds, data_seconds: of training in it, and of that waiting for batches.
    """

    number: int = 0
    updates: int = 0
    samples: int = 0
    loss: float = 0.0
    values: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    train_seconds: float = 0.0
    data_seconds: float = 0.0

    @classmethod
    def of(cls, saved):
        """An epoch as a checkpoint has it; older ones know the sum of accuracies over updates alone."""
        rest = {name: value for name, value in saved.items() if name != "accuracy"}
        if saved.get("accuracy") is not None:
            rest["values"] = {"accuracy": (saved["accuracy"], saved["updates"])}
        return cls(**rest)

    def add(self, metrics, update, workdir):
        """Waits for an update, and raises a FloatingPointError if it is not finite."""
        metrics = jax.device_get(metrics)
        for name, value in {"loss": metrics.loss, "grad_norm": metrics.grad_norm, **metrics.values}.items():
            if not np.isfinite(value):
                where = f"update {update} of epoch {self.number + 1}"
                raise FloatingPointError(_diverged(name, value, where, workdir))
        self.loss += float(metrics.loss)
        count = 1.0 if metrics.answers is None else float(metrics.answers)
        for name, value in metrics.values.items():
            before, counted = self.values.get(name, (0.0, 0.0))
            self.values[name] = before + count * float(value), counted + count

    def record(self, times):
        means = {f"train_{name}": value / (count or 1.0) for name, (value, count) in self.values.items()}
        return {
            "epoch": self.number + 1,
            "train_loss": self.loss / self.updates,
            **means,
            "data_seconds": self.data_seconds,
            "update_seconds": self.train_seconds - self.data_seconds,
            "seconds_per_update": float(np.median(times or [self.train_seconds / self.updates])),
            "samples_per_second": self.samples / self.train_seconds,
        }


def _evaluate_held_out(evaluate, state, held_out, epoch, workdir):
    began, record = time.perf_counter(), {}
    for name, batches in held_out.items():
        result = evaluate_all(evaluate, state, batches())
        if not math.isfinite(result["loss"]):
            where = f"epoch {epoch + 1}"
            raise FloatingPointError(_diverged(f"{name} loss", result["loss"], where, workdir))
        record["firing_rates"] = result.pop("firing_rates")
        record |= {f"{name}_{key}": value for key, value in result.items()}
    return {**record, "evaluation_seconds": time.perf_counter() - began}


def _diverged(name, value, where, workdir):
    return (
        f"{name} is {value} in {where}: training stopped, and the last good state is kept in "
        f"{workdir / CHECKPOINTS}. A lower learning rate may help."
    )


def _postfix(record):
    metrics = [name.removeprefix("train_") for name in record if name.startswith("train_")]
    metrics.remove("loss")
    shown = {"loss": "train_loss"}
    shown |= {n.removesuffix("_accuracy"): n for m in metrics for n in record if n.endswith(f"_{m}")}
    return f"epoch {record['epoch']}  " + "  ".join(f"{k} {record[v]:.4f}" for k, v in shown.items())
