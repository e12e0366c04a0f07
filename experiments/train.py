"""Trains one network under one rule.

    python experiments/train.py digits --rule sltt --T 6 --epochs 20 --workdir runs/digits

takes half a minute on two cores and ends at a test accuracy of about 0.98. Writes into the workdir:
config.json, metrics.jsonl (a line an epoch), summary.json, curves.png and checkpoints/. The same command goes
on with a run that was stopped.

On several hosts, each runs the same command with its own number (or `--coordinator auto` under Slurm):

    python experiments/train.py cifar10 --coordinator HOST:PORT --num-processes 2 --process-id 0
"""

import contextlib
import platform
import statistics
import sys
import time
from importlib.metadata import version

import jax
import tyro
from common.measures import initial_problems
from plots.style import plot_curves
from common.runs import (
    CURVES,
    SUMMARY,
    TENSORBOARD,
    Experiment,
    Run,
    build,
    held_out_batches,
    prepare,
    prepare_xla,
    presets,
    training_batches,
    write_json,
)

from sltt_jax import training
from sltt_jax.analysis import flops, temp_bytes

__all__ = ["Experiment", "Run", "build", "fail", "prepare", "presets", "stopped", "train", "write_json"]


def train(experiment: Experiment) -> dict:
    """Trains, writes everything into the workdir and returns the summary.

    Raises:
      FloatingPointError: training diverged.
      training.Stopped: after Ctrl-C or SIGTERM; the state and a summary of the epochs so far are written.
      OSError: a checkpoint could not be written.
      ValueError: the parameters to start from do not fit, or all checkpoints are damaged.
    """
    run = experiment.run
    state = experiment.initial_state(jax.random.key(run.seed))
    like = {"params": state.params, "variables": state.variables}
    if run.init_from is not None:
        state = state._replace(**training.load_parts(run.init_from, like))
    records = training.read_metrics(run.workdir)
    first_process = jax.process_index() == 0
    if not records and first_process:
        for text in initial_problems(experiment, state):
            print(f"warning: before training, {text}", file=sys.stderr)
    state, update, costs = compile_update(experiment, state)
    summary = {**describe(experiment), **costs}
    summary["parameters"] = sum(p.size for p in jax.tree.leaves(state.params))
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), like["params"])

    status = "failed"
    try:
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(event_files(run)) if first_process else lambda record: None
            checkpoints = stack.enter_context(training.Checkpoints(run.workdir, keep=run.keep))
            for record in training.train_epochs(
                state, update, experiment.evaluate(), training_batches(experiment),
                held_out_batches(experiment), epochs=run.epochs, checkpoints=checkpoints,
                workdir=run.workdir, save_every=run.save_every, score=score(run),
                stop=stack.enter_context(training.StopRequests()),
            ):  # fmt: skip
                records = [*records[: record["epoch"] - 1], record]
                log(record)
        status = "finished"
    except (KeyboardInterrupt, training.Stopped):
        status = "stopped"
        raise
    except FloatingPointError:
        status = "diverged"
        raise
    finally:
        summary |= {"status": status, **results(records, run)}
        if first_process:
            write_json(run.workdir / SUMMARY, summary)
            if records:
                title = f"{run.preset}, {experiment.rule}, T={run.T}"
                plot_curves(records, run.workdir / CURVES, title=title)
    params = training.load_parts(run.workdir, {"params": like})["params"]
    summary["parameters_sha256"] = training.sha256(params)
    if first_process:
        write_json(run.workdir / SUMMARY, summary)
    return summary


def compile_update(experiment: Experiment, state: training.TrainState):
    """The state on its devices, the compiled update, and what it costs."""
    run, batch = experiment.run, experiment.source.batch
    traced = jax.jit(experiment.update(), donate_argnums=0).trace(state, batch)
    costs = {"flops_per_update": flops(traced, backward_share=run.k / run.T if run.rule == "sltt_k" else 1)}
    began = time.perf_counter()
    if not experiment.sharded:
        update = compiled = traced.lower().compile()
    else:
        update = training.parallel(
            experiment.update(training.AXIS), experiment.devices, arguments=1, donate=True
        )
        state = training.replicate(state, experiment.devices)
        mine = jax.tree.map(lambda a: a[: len(a) // jax.process_count()], batch)
        compiled = update.lower(state, experiment.put(mine)).compile()
    costs |= {"compile_seconds": time.perf_counter() - began, "temp_bytes": temp_bytes(compiled)}
    return state, update, costs


def score(run: Run) -> str | None:
    """The entry of the records that the best epoch is selected by."""
    return None if run.select == "last" else f"{run.select}_accuracy"


@contextlib.contextmanager
def event_files(run: Run):
    """A function that writes the numbers of a record for TensorBoard, or does nothing."""
    if not run.tensorboard:
        yield lambda record: None
        return
    from tensorboardX import SummaryWriter  # optional

    with SummaryWriter(str(run.workdir / TENSORBOARD)) as writer:

        def log(record):
            for name, value in record.items():
                if isinstance(value, float):
                    writer.add_scalar(name, value, record["epoch"])

        yield log


def describe(experiment: Experiment) -> dict:
    """What was run, and on what; a setting that its rule does not have is null."""
    run = experiment.run
    return {
        "preset": run.preset,
        "rule": run.rule,
        "T": run.T,
        "k": run.k if run.rule == "sltt_k" else None,
        "window": run.window if run.rule == "tbptt" else None,
        "chunk": run.chunk if run.rule in ("sltt", "bptt") else None,
        "precision": run.precision,
        "seed": run.seed,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "sltt-jax")},
        },
        "device": experiment.devices[0].device_kind,
        "devices": len(experiment.devices) * jax.process_count(),
        "processes": jax.process_count(),
    }


def results(records: list[dict], run: Run) -> dict:
    """What the summary says of the epochs that were trained; nothing of a run that ended before the first."""
    if not records:
        return {"epochs": 0}
    last, by = records[-1], score(run)
    selected = last if by is None else max(records, key=lambda r: (r[by], r["epoch"]))
    samples_per_second = statistics.median(r["samples_per_second"] for r in records)
    return {
        "epochs": last["epoch"],
        "train_loss": last["train_loss"],
        "train_accuracy": last["train_accuracy"],
        "select": run.select,
        "selected_epoch": selected["epoch"],
        **{k: selected[k] for k in ("validation_accuracy", "test_loss", "test_accuracy") if k in selected},
        "test_accuracy_per_step": selected["test_accuracy_per_step"],
        "last_test_accuracy": last["test_accuracy"],
        "best_test_accuracy": max(r["test_accuracy"] for r in records),
        "firing_rates": selected["firing_rates"],
        "seconds_per_update": statistics.median(r["seconds_per_update"] for r in records),
        "samples_per_second": samples_per_second,
        "sample_steps_per_second": samples_per_second * run.T,
        **{name: sum(r[name] for r in records) for name in (
            "data_seconds", "update_seconds", "evaluation_seconds", "seconds",
        )},
    }  # fmt: skip


def report(summary: dict, run: Run) -> str:
    """What a person wants to read at the end of a run."""
    rates = ", ".join(f"{name} {rate:.3f}" for name, rate in summary["firing_rates"].items())
    per_step = " ".join(f"{a:.4f}" for a in summary["test_accuracy_per_step"])
    chosen = {
        "last": "last epoch",
        "validation": f"epoch {summary['selected_epoch']}, best on the validation samples",
        "test": f"epoch {summary['selected_epoch']}, selected on the test samples themselves",
    }[run.select]
    return f"""
test accuracy        {summary["test_accuracy"]:.4f}   ({chosen}; best epoch {summary["best_test_accuracy"]:.4f})
  after t = 1..{summary["T"]}      {per_step}
memory of an update  {summary["temp_bytes"] / 2**20:.2f} MiB of temporaries
time of an update    {summary["seconds_per_update"] * 1e3:.1f} ms (median), compiled in {summary["compile_seconds"]:.1f} s
throughput           {summary["samples_per_second"]:.0f} samples / s, {summary["sample_steps_per_second"]:.0f} sample-steps / s
time in all          {summary["seconds"]:.1f} s: data {summary["data_seconds"]:.1f}, updates {summary["update_seconds"]:.1f}, evaluation {summary["evaluation_seconds"]:.1f}
work of an update    {summary["flops_per_update"] / 1e9:.2f} GFLOP
firing rates         {rates}
files                {run.workdir}: summary.json, metrics.jsonl, curves.png, checkpoints"""  # noqa: E501


def main() -> int:
    try:
        run = tyro.extras.overridable_config_cli(presets(), description=__doc__)
        prepare_xla()
        if run.coordinator is not None:
            training.join(run.coordinator, run.num_processes, run.process_id)
        with training.together():
            experiment = prepare(run)
            summary = train(experiment)
    except (FloatingPointError, OSError, ValueError) as error:
        return fail(error)
    except training.Stopped as error:
        return stopped(error)
    if jax.process_index() == 0:
        print(report(summary, experiment.run))
    return 0


def fail(error: Exception) -> int:
    print(f"error: {error}", file=sys.stderr)
    if jax.distributed.is_initialized():
        training.leave(1)
    return 1


def stopped(error: training.Stopped) -> int:
    print(f"\n{error}; the same command goes on", file=sys.stderr)
    return 128 + error.signal


if __name__ == "__main__":
    sys.exit(main())
