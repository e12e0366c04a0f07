"""Evaluates the network of a run at other numbers of time steps than it was trained with.

    python experiments/evaluate.py runs/digits --T 1 2 4 6 8

takes a few seconds a number. Writes evaluation.json into the workdir of the run.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import tyro
from common.runs import Run, build, held_out_batches, prepare_xla, write_json
from tqdm import tqdm
from train import fail

from sltt_jax import training


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """What is evaluated.

    Attributes:
      run: the workdir of a run, or one of its checkpoints.
      T: numbers of time steps; those of the run by default.
      best: the checkpoint with the best score, of a run that selected by one, in place of the last.
      data_dir: directory of the data sets.
    """

    run: tyro.conf.Positional[Path]
    T: tuple[int, ...] = ()
    best: bool = False
    data_dir: Path = Path("data")

    def __post_init__(self):
        if any(t < 1 for t in self.T):
            raise ValueError(f"T must be numbers >= 1, got {self.T}")


def workdir_of(path: Path) -> Path:
    """The workdir of a run, given it or one of its checkpoints."""
    return path.parent.parent if path.parent.name == training.CHECKPOINTS else path


def read_run(workdir: Path, data_dir: Path) -> Run:
    """The run in a workdir.

    Raises:
      FileNotFoundError: there is none.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{workdir} holds no run: it has no config.json")
    settings = json.loads(path.read_text())
    settings |= {"features": tuple(settings["features"]), "init_from": None}
    return Run(**settings, data_dir=data_dir, workdir=workdir)


def evaluate(settings: Evaluate, run: Run, T: int) -> dict:
    """Loss and accuracies of the held-out samples over T steps."""
    # The rule does not matter, but k, window and chunk must fit T.
    run = dataclasses.replace(run, T=T, rule="sltt", chunk=1, devices=1)
    experiment = build(run)
    state = jax.eval_shape(experiment.initial_state, jax.random.key(0))
    like = {"params": state.params, "variables": state.variables}
    state = state._replace(**training.load_parts(settings.run, like, best=settings.best))
    step = experiment.evaluate()
    results = {
        name: training.evaluate_all(step, state, batches())
        for name, batches in held_out_batches(experiment).items()
    }
    return {"T": T, **results}


def main() -> int:
    try:
        settings = tyro.cli(Evaluate, description=__doc__)
        prepare_xla()
        workdir = workdir_of(settings.run)
        run = read_run(workdir, settings.data_dir)
        rows = [evaluate(settings, run, T) for T in tqdm(settings.T or (run.T,), unit="T")]
    except (ValueError, OSError) as error:
        return fail(error)
    write_json(workdir / "evaluation.json", {"checkpoint": str(settings.run), "rows": rows})
    for row in rows:
        parts = (
            f"{name} {row[name]['accuracy']:.4f} (loss {row[name]['loss']:.4f})"
            for name in row
            if name != "T"
        )
        print(f"T={row['T']:<3}", *parts, sep="  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
