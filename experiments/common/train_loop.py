"""The training of one run: its epochs, the files in its workdir, and its summary."""

import contextlib
import platform
import statistics
import sys
import time
from importlib.metadata import version

import jax
from common.command import write_json
from common.measures import initial_problems
from common.runs import Experiment, Learned, Run, held_out_batches, training_batches
from common.workdirs import CURVES, SUMMARY, TENSORBOARD
from plots.curves import plot_curves

from sltt_jax import training
from sltt_jax.analysis import flops, temp_bytes


def train(experiment: Experiment, checkpoints: training.Checkpoints) -> dict:
    """Trains, writes everything into the workdir and returns the summary.

    Args:
      experiment, checkpoints: from `prepare`.

    Raises:
      FloatingPointError: training diverged.
      training.Stopped: after Ctrl-C or SIGTERM; the state and a summary of the epochs so far are written.
      OSError: a checkpoint could not be written.
      ValueError: the parameters to start from do not fit, or all checkpoints are damaged.
    """
    run = experiment.run
    state = experiment.initial_state(jax.random.key(run.seed))
    if run.init_from is not None:
        state = state._replace(**experiment.load(run.init_from)._asdict())
    first_process = jax.process_index() == 0
    if first_process:
        for line in experiment.data.about:
            print(line)
    if first_process and not training.read_metrics(run.workdir):
        for text in initial_problems(experiment, Learned(state.params, state.variables)):
            print(f"warning: before training, {text}", file=sys.stderr)
    state, update, costs = compile_update(experiment, state)
    summary = {**describe(experiment), **costs}
    summary["parameters"] = sum(p.size for p in jax.tree.leaves(state.params))

    def conclude(status):
        records = training.read_metrics(run.workdir)
        summary.update({"status": status, **results(records, run)})
        if first_process:
            write_json(run.workdir / SUMMARY, summary)
            if records:
                title = f"{run.preset}, {experiment.rule}, T={run.T}"
                plot_curves(records, run.workdir / CURVES, title=title)

    try:
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(event_files(run)) if first_process else lambda record: None
            for record in training.train_epochs(
                state, update, experiment.evaluate(), training_batches(experiment),
                held_out_batches(experiment), epochs=run.epochs, checkpoints=checkpoints,
                workdir=run.workdir, save_every=run.save_every, score=score(run),
                stop=stack.enter_context(training.StopRequests()),
            ):  # fmt: skip
                log(record)
    except (KeyboardInterrupt, training.Stopped):
        conclude("stopped")
        raise
    except FloatingPointError:
        conclude("diverged")
        raise
    summary["parameters_sha256"] = training.sha256(experiment.load(run.workdir).params)
    conclude("finished")
    return summary


def compile_update(experiment: Experiment, state: training.TrainState):
    """Returns the state on its devices, the compiled update, and what it costs."""
    batch, share = experiment.data.batch, experiment.rule.backward_share(experiment.run.T)
    traced = jax.jit(experiment.update(), donate_argnums=0).trace(state, batch)
    costs = {"flops_per_update": flops(traced, backward_share=share)}
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
    """Yields a function that writes the numbers of a record for TensorBoard, or does nothing."""
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
    """Settings, versions and device of a run, for its summary."""
    run = experiment.run
    return {
        "preset": run.preset,
        "rule": str(experiment.rule),
        "T": run.T,
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
    """Results of the epochs that were trained, for the summary; none of a run that ended before the first."""
    if not records:
        return {"epochs": 0}
    last, by = records[-1], score(run)
    selected = last if by is None else max(records, key=lambda r: (r[by], r["epoch"]))
    samples_per_second = statistics.median(r["samples_per_second"] for r in records)
    return {
        "epochs": last["epoch"],
        "train_loss": last["train_loss"],
        "select": run.select,
        "selected_epoch": selected["epoch"],
        **{k: last[k] for k in ("train_accuracy",) if k in last},
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
