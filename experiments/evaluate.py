"""Evaluates the network of a run at other numbers of time steps than it was trained with.

    python experiments/evaluate.py runs/digits --T 1 2 4 6 8

takes a few seconds a number. Writes evaluation.json into the workdir of the run.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import tyro
from common.command import check_numbers, command, write_json
from common.runs import build, held_out_batches
from common.workdirs import read_run, workdir_of
from tqdm import tqdm

from sltt_jax import training


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Settings of the evaluation.

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
        check_numbers(self, "T", most=10**6)


@command(Evaluate, __doc__)
def main(settings: Evaluate):
    workdir = workdir_of(settings.run)
    steps = settings.T or (read_run(workdir, settings.data_dir).T,)
    rows = [evaluate(settings, T) for T in tqdm(steps, unit="T")]
    write_json(workdir / "evaluation.json", {"checkpoint": str(settings.run), "rows": rows})
    for row in rows:
        parts = (
            f"{name} {row[name]['accuracy']:.4f} (loss {row[name]['loss']:.4f})"
            for name in row
            if name != "T"
        )
        print(f"T={row['T']:<3}", *parts, sep="  ")


def evaluate(settings: Evaluate, T: int) -> dict:
    """Loss and accuracies of the held-out samples over T steps."""
    # The rule does not matter, but that of the run may need more steps.
    run = read_run(workdir_of(settings.run), settings.data_dir, T=T, rule="sltt", devices=1)
    experiment = build(run)
    state = jax.eval_shape(experiment.initial_state, jax.random.key(0))
    state = state._replace(**experiment.load(settings.run, best=settings.best)._asdict())
    step = experiment.evaluate()
    results = {
        name: training.evaluate_all(step, state, batches())
        for name, batches in held_out_batches(experiment).items()
    }
    return {"T": T, **results}


if __name__ == "__main__":
    sys.exit(main())
