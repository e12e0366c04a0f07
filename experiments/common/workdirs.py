"""The directory of a run: its settings in it, and how another run is kept out of it."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from common import identity
from common.command import read_json, write_json
from common.configs import Config
from common.presets import reduced
from common.rule_flags import AUTO, spelt
from common.runs import Experiment, Run, build

from sltt_jax import training

CONFIG = "config.json"
SUMMARY = "summary.json"
CURVES = "curves.png"
TENSORBOARD = "tensorboard"
WRITTEN = (
    identity.FILE,
    training.CHECKPOINTS,
    training.DAMAGED,
    training.METRICS_FILE,
    SUMMARY,
    CURVES,
    TENSORBOARD,
)


@contextlib.contextmanager
def prepare(run: Run) -> Iterator[tuple[Experiment, training.Checkpoints]]:
    """Builds a run, and makes its workdir its own until the end of the `with` statement.

    Raises:
      ValueError: a setting that cannot be, or as `check_workdir`.
      OSError: the data cannot be read, or as `check_workdir`; or another run is at work in the workdir.
    """
    _check_agreement(run)
    check_workdir(run)
    experiment = build(run)
    _check_network(experiment)  # before the workdir is claimed
    if training.differing({"updates": str(experiment.data.train.steps_per_epoch)}):
        raise ValueError("the processes differ in their training data")
    training.on_first(lambda: run.workdir.mkdir(parents=True, exist_ok=True))
    with training.Checkpoints(run.workdir, keep=run.keep) as checkpoints:

        def claim():
            found = check_workdir(run)  # again: another run may have been here while this one was built
            if found is not None and run.overwrite:
                checkpoints.clear()
            if found is None or run.overwrite:
                _start(run, experiment)

        training.on_first(claim)
        yield experiment, checkpoints


def _check_network(experiment):
    """Raises a ValueError if the network does not take the data, or what it is to start from."""
    run = experiment.run
    try:
        jax.eval_shape(experiment.initial_state, jax.random.key(run.seed))
    except ValueError as error:
        raise ValueError(f"{run.data}: {run.model} does not take it: {error}") from error
    if run.init_from is not None:
        experiment.load(run.init_from)


def check_workdir(run: Run) -> Run | None:
    """Returns the run that is in a workdir, if there is one, which is that of `run` unless it overwrites it.

    Raises:
      ValueError: it is a run of other settings, its settings are damaged, or there are files of a run without
        settings.
      OSError: the workdir cannot be written, or it holds no run to resume.
    """
    folder = next(f for f in (run.workdir, *run.workdir.absolute().parents) if os.path.lexists(f))
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        what = "cannot be written" if folder.is_dir() else "is no directory"
        raise OSError(f"workdir {run.workdir}: {folder} {what}")
    if run.init_from is not None and not run.init_from.is_dir():
        raise FileNotFoundError(f"init_from: there is no {run.init_from}")
    found = _read(run.workdir)
    if run.resume and found is None:
        raise FileNotFoundError(f"{run.workdir} holds no run to resume")
    if found is not None and not run.overwrite:
        was, now = config_of(found), config_of(run)
        if differs := sorted(k for k in was.keys() | now.keys() if was.get(k) != now.get(k)):
            lines = (f"  {k}: {was.get(k)} in the workdir, {now.get(k)} now" for k in differs)
            raise ValueError(
                f"{run.workdir} holds a run of other settings; choose another --workdir, or --overwrite it:\n"
                + "\n".join(lines)
            )
    return found


def _check_agreement(run):
    """Raises a ValueError if the processes would not do the same, before one waits for another in vain."""
    apart = "process_id", "devices", "data_dir", "workdir", "download"
    texts = {name: str(value) for name, value in vars(run).items() if name not in apart}
    texts |= {"devices": str(run.devices or jax.local_device_count()), "version of jax": jax.__version__}
    if names := training.differing(texts):
        raise ValueError(f"the processes differ in {', '.join(names)}; run the same command on all")


def _start(run, experiment):
    """Takes away what else there is of the run before, and writes the settings of the new one."""
    events = (run.workdir / TENSORBOARD).glob("events.out.tfevents.*")
    for path in (*(run.workdir / name for name in (training.METRICS_FILE, SUMMARY, CURVES)), *events):
        path.unlink(missing_ok=True)
    identity.record(run.workdir, experiment.data.identity)
    write_json(run.workdir / CONFIG, config_of(run))


def config_of(run: Run) -> dict:
    """The settings of a run without where it is run, as JSON has them."""
    run = reduced(run) if run.reduced else run
    names = {field.name for field in dataclasses.fields(Config)} | {"made", "init_from"}
    names |= {"gigabytes"} if run.rule in AUTO else set()
    settings = {k: v for k, v in dataclasses.asdict(run).items() if k in names}
    settings["rule"] = spelt(run.rule, {}, T=run.T, k=run.paper_k)
    return json.loads(json.dumps(settings, default=str))


def _read(workdir) -> Run | None:
    path = workdir / CONFIG
    if not path.exists():
        there = (workdir / name for name in WRITTEN)
        rest = [p.name for p in there if p.is_file() or (p.is_dir() and any(p.iterdir()))]
        if rest:
            raise ValueError(
                f"{workdir} has {', '.join(rest)}, but no {CONFIG} that tells of what run; choose another "
                "--workdir, or move them away"
            )
        return None
    try:
        settings = read_json(path)
        paths = {k: Path(settings[k]) for k in ("init_from",) if settings[k] is not None}
        return Run(**settings | paths | {"features": tuple(settings["features"])}, workdir=workdir)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged, or of another version: {error}") from error


def workdir_of(path: Path) -> Path:
    """The workdir of a run, given it or one of its checkpoints."""
    return path.parent.parent if path.parent.name == training.CHECKPOINTS else path


def read_run(workdir: Path, data_dir: Path, **changes: Any) -> Run:
    """Reads the settings of the run in a workdir, changed where `changes` names them.

    What reads a run trains no further, so that no chunk is looked for where it is "auto".

    Raises:
      FileNotFoundError: there is none.
      ValueError: its settings are damaged.
    """
    found = _read(workdir)
    if found is None:
        raise FileNotFoundError(f"{workdir} holds no run: it has no {CONFIG}")
    rule = str(AUTO[found.rule]) if found.rule in AUTO else found.rule
    return dataclasses.replace(found, **{"rule": rule, "init_from": None, "data_dir": data_dir} | changes)


def read_summary(workdir: Path) -> dict:
    """Reads the summary of a run, empty if there is none yet."""
    path = workdir / SUMMARY
    return read_json(path) if path.exists() else {}
