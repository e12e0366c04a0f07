"""Trains one network under one rule.

    python experiments/train.py digits --rule sltt --T 6 --epochs 20 --workdir runs/digits

takes half a minute on two cores and ends at a test accuracy of about 0.98. Writes into the workdir:
config.json, metrics.jsonl (a line an epoch), summary.json, curves.png and the last checkpoint.
"""

import dataclasses
import inspect
import json
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import data_sets
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import tyro
from configs import PRESETS, Config, make_model, make_rule, reduced
from data_sets import Source
from plots import plot_curves

from sltt_jax import data, losses, rules, training
from sltt_jax.analysis import flops, temp_bytes

INTERRUPTED = 130  # the exit status that shells give Ctrl-C


@dataclasses.dataclass(frozen=True)
class Run(Config):
    """A configuration, and where and how it is run.

    Attributes:
      reduced: the recipe made small enough for two cores and a few minutes.
      made: train on made-up data of the same form.
      data_dir: directory of the data sets.
      workdir: directory of all that the run writes.
      resume: go on from the last checkpoint in the workdir.
      overwrite: start anew in a workdir that holds a run.
    """

    reduced: bool = False
    made: bool = False
    data_dir: Path = Path("data")
    workdir: Path = Path("runs/default")
    resume: bool = False
    overwrite: bool = False


class Experiment(NamedTuple):
    """A run whose settings were found good, with its data, network, rule and loss at hand."""

    run: Run
    source: Source
    model: nn.Module
    rule: rules.Rule
    step_loss: rules.StepLoss
    optimizer: optax.GradientTransformation

    def initial_state(self, key: jax.Array) -> training.TrainState:
        """The state before the first update."""
        source, x = self.source, jnp.asarray(self.source.batch["x"])
        init = jax.jit(training.init_state, static_argnums=(0, 1, 2))
        return init(self.model, self.optimizer, source.encode, key, x)

    def update(self) -> Callable:
        """The update, to be compiled."""
        return training.make_update(self.model, self.rule, self.step_loss, self.optimizer, self.source.encode)


def build(run: Run) -> Experiment:
    """Everything that a run is made of.

    Raises:
      ValueError: a setting that cannot be.
      OSError: the data cannot be read.
    """
    if run.reduced:
        run = reduced(run)
    model = make_model(run, data_sets.spec(run).classes)
    step_loss = losses.classification(mse_weight=run.mse_weight, mse_target=run.mse_target)
    source = data_sets.open_source(run, run.data_dir, made=run.made)
    schedule = training.cosine_per_epoch(
        run.lr, epochs=run.epochs, steps_per_epoch=source.train.steps_per_epoch
    )
    optimizer = training.make_optimizer(
        run.optimizer, schedule, weight_decay=run.weight_decay, momentum=run.momentum
    )
    return Experiment(run, source, model, make_rule(run), step_loss, optimizer)


def prepare(run: Run) -> Experiment:
    """Builds a run and makes its workdir ready, so that what cannot be is said before any long work.

    Raises:
      ValueError: a setting that cannot be, or `resume` with other settings than the run in the workdir.
      FileExistsError: the workdir holds a run, and neither `resume` nor `overwrite` is given.
      OSError: the data cannot be read, or the workdir cannot be written.
    """
    check_workdir(run)
    experiment = build(run)
    prepare_workdir(experiment.run)
    return experiment


def train(experiment: Experiment) -> dict:
    """Trains, writes everything into the workdir and returns the summary.

    Raises:
      FloatingPointError: training diverged.
      KeyboardInterrupt: after Ctrl-C; the summary of the epochs so far is written.
    """
    run, source, rule = experiment.run, experiment.source, experiment.rule
    init_key, key = jax.random.split(jax.random.key(run.seed))
    state = experiment.initial_state(init_key)

    began = time.perf_counter()
    traced = jax.jit(experiment.update(), donate_argnums=0).trace(state, source.batch, key)
    update = traced.lower().compile()
    summary = {
        **describe(run),
        "compile_seconds": time.perf_counter() - began,
        "temp_bytes": temp_bytes(update),
        "flops_per_update": flops(traced, backward_share=run.k / run.T if run.rule == "sltt_k" else 1.0),
        "parameters": sum(p.size for p in jax.tree.leaves(state.params)),
    }
    evaluate = jax.jit(training.make_evaluate(experiment.model, experiment.step_loss, source.encode))

    records = training.read_metrics(run.workdir) if run.resume else []
    status = "failed"
    try:
        for record in training.train_epochs(
            state, update, evaluate, data.Prefetch(source.train), source.test,
            epochs=run.epochs, key=key, workdir=run.workdir, resume=run.resume,
        ):  # fmt: skip
            records = [*records[: record["epoch"] - 1], record]
        status = "finished"
    except KeyboardInterrupt:
        status = "interrupted"
        raise
    except FloatingPointError:
        status = "diverged"
        raise
    finally:
        summary |= {"status": status, **results(records)}
        write_json(run.workdir / "summary.json", summary)
        if records:
            plot_curves(records, run.workdir / "curves.png", title=f"{run.preset}, {rule}, T={run.T}")
    return summary


def describe(run: Run) -> dict:
    """What was run, and on what; a setting that its rule does not have is null."""
    return {
        "preset": run.preset,
        "rule": run.rule,
        "T": run.T,
        "k": run.k if run.rule == "sltt_k" else None,
        "window": run.window if run.rule == "tbptt" else None,
        "chunk": run.chunk if run.rule in ("sltt", "bptt") else None,
        "seed": run.seed,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "sltt-jax")},
        },
        "device": jax.devices()[0].device_kind,
    }


def results(records: list[dict]) -> dict:
    """What the summary says of the epochs that were trained; nothing of a run that ended before the first."""
    if not records:
        return {"epochs": 0}
    last = records[-1]
    return {
        "epochs": last["epoch"],
        "train_loss": last["train_loss"],
        "train_accuracy": last["train_accuracy"],
        "test_loss": last["test_loss"],
        "test_accuracy": last["test_accuracy"],
        "best_test_accuracy": max(r["test_accuracy"] for r in records),
        "test_accuracy_per_step": last["test_accuracy_per_step"],
        "firing_rates": last["firing_rates"],
        "seconds_per_update": statistics.median(r["seconds_per_update"] for r in records),
        "seconds": sum(r["seconds"] for r in records),
    }


def check_workdir(run: Run):
    """Says whether the workdir fits `resume` and `overwrite`, before data is read and anything is written."""
    found = (run.workdir / "config.json").exists()
    if run.resume and not found:
        raise FileNotFoundError(f"{run.workdir} holds no run to resume")
    if found and not (run.resume or run.overwrite):
        raise FileExistsError(f"{run.workdir} holds a run: --resume goes on with it, --overwrite starts anew")


def prepare_workdir(run: Run):
    """Makes the workdir ready and writes config.json, or says why the run in it cannot be resumed."""
    path = run.workdir / "config.json"
    wanted = config_of(run)
    if run.resume:
        found = json.loads(path.read_text())
        differs = sorted(k for k in wanted.keys() | found.keys() if wanted.get(k) != found.get(k))
        if differs:
            lines = (f"  {k}: {found.get(k)} in the workdir, {wanted.get(k)} now" for k in differs)
            raise ValueError("cannot resume a run of other settings:\n" + "\n".join(lines))
        return
    run.workdir.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(run.workdir / training.CHECKPOINTS, ignore_errors=True)
    for name in (training.METRICS_FILE, "summary.json", "curves.png"):
        (run.workdir / name).unlink(missing_ok=True)
    write_json(path, wanted)


def config_of(run: Run) -> dict:
    """The settings of a run without where it is run, as JSON has them."""
    names = {field.name for field in dataclasses.fields(Config)} | {"made"}
    return {
        k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(run).items() if k in names
    }


def write_json(path: Path, content: dict):
    """Writes a file that is either the old or the new one, whatever happens in between."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(content, indent=2) + "\n")
    unfinished.replace(path)


def report(summary: dict, workdir: Path) -> str:
    """What a person wants to read at the end of a run."""
    rates = ", ".join(f"{name} {rate:.3f}" for name, rate in summary["firing_rates"].items())
    per_step = " ".join(f"{a:.4f}" for a in summary["test_accuracy_per_step"])
    return f"""
test accuracy        {summary["test_accuracy"]:.4f}   (best epoch {summary["best_test_accuracy"]:.4f})
  after t = 1..{summary["T"]}      {per_step}
memory of an update  {summary["temp_bytes"] / 2**20:.2f} MiB of temporaries
time of an update    {summary["seconds_per_update"] * 1e3:.1f} ms (median), compiled in {summary["compile_seconds"]:.1f} s
work of an update    {summary["flops_per_update"] / 1e9:.2f} GFLOP
firing rates         {rates}
files                {workdir}: summary.json, metrics.jsonl, curves.png, checkpoints"""  # noqa: E501


def presets(prefix: str = "") -> dict[str, tuple[str, Run]]:
    """The presets as tyro takes them: name, text and a run whose workdir has the name behind `prefix`."""
    return {
        name: (
            inspect.getdoc(preset) or name,
            Run(**vars(preset()), workdir=Path("runs") / (prefix + name)),
        )
        for name, preset in PRESETS.items()
    }


def main() -> int:
    try:
        run = tyro.extras.overridable_config_cli(presets(), description=__doc__)
        experiment = prepare(run)
    except (ValueError, OSError) as error:
        return fail(error)
    try:
        summary = train(experiment)
    except FloatingPointError as error:
        return fail(error)
    except KeyboardInterrupt:
        print(
            f"\ninterrupted; {run.workdir / 'summary.json'} holds what there is, --resume goes on",
            file=sys.stderr,
        )
        return INTERRUPTED
    print(report(summary, run.workdir))
    return 0


def fail(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
