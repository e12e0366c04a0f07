"""Activity of the neurons of a network: firing rates, dead and saturated layers, operations and energy.

    python experiments/activity.py digits                   a preset as it starts
    python experiments/activity.py runs/digits              a run as it ended, or one of its checkpoints

takes a few seconds. Writes activity.json and activity.png. The energy is the usual estimate for 45 nm CMOS,
4.6 pJ a multiplication and addition and 0.9 pJ an addition (Horowitz, ISSCC 2014), of arithmetic alone.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from common.command import check_numbers, command, write_json
from common.measures import measure_activity
from common.presets import PRESETS
from common.runs import Experiment, Learned, Run, build
from common.workdirs import read_run, workdir_of
from plots.activity import plot_activity

from sltt_jax.analysis.activity import Activity, energy, problems


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings: the network, and over how much it is looked at.

    Attributes:
      network: a preset, the workdir of a run, or one of its checkpoints.
      batch: samples; those of an update by default.
      T: time steps; those of the run by default.
      reduced: of a preset, the recipe made small.
      made: of a preset, on made-up data of the same form.
      data_dir: directory of the data sets.
      workdir: directory of what is written; by default that of the run, or runs/activity_<preset>.
    """

    network: tyro.conf.Positional[str]
    batch: int | None = None
    T: int | None = None
    reduced: bool = False
    made: bool = False
    data_dir: Path = Path("data")
    workdir: Path | None = None

    def __post_init__(self):
        check_numbers(self, "batch", "T", most=10**6)
        if self.network not in PRESETS and (self.reduced or self.made):
            raise ValueError("reduced and made are for presets; a run has its own settings")
        if self.network not in PRESETS and not Path(self.network).is_dir():
            raise ValueError(f"{self.network!r} is no directory, and no preset: {', '.join(PRESETS)}")


@command(Settings, __doc__)
def main(settings: Settings):
    experiment, learned, workdir = open_network(settings)
    workdir.mkdir(parents=True, exist_ok=True)
    batch, starts = next(experiment.data.train), settings.network in PRESETS
    # Before training the running statistics are not yet those of anything.
    found = summarise(measure_activity(experiment, learned, batch, train=starts))
    run = experiment.run
    write_json(workdir / "activity.json", {"network": settings.network, "T": run.T, **found})
    when = "at the start" if starts else "trained"
    plot_activity(found, workdir / "activity.png", title=f"{run.model}, {run.data}, T={run.T}, {when}")
    print(f"{show(found)}\n\nfiles  {workdir}: activity.json, activity.png")


def open_network(settings: Settings) -> tuple[Experiment, Learned, Path]:
    """Opens the network, and returns its experiment, what it has learnt, and the directory to write to."""
    # The rule does not matter, but that of the run may need more steps.
    changed: dict[str, Any] = {"rule": "sltt", "devices": 1}
    changed |= {k: v for k, v in (("batch_size", settings.batch), ("T", settings.T)) if v is not None}
    if settings.network in PRESETS:
        changed |= {name: getattr(settings, name) for name in ("reduced", "made", "data_dir")}
        experiment = build(Run.of(settings.network, **changed))
        state = experiment.initial_state(jax.random.key(experiment.run.seed))
        workdir = Path("runs") / f"activity_{settings.network}"
        return experiment, Learned(state.params, state.variables), settings.workdir or workdir
    folder = Path(settings.network)
    workdir = workdir_of(folder)
    experiment = build(read_run(workdir, settings.data_dir, **changed))
    return experiment, experiment.load(folder), settings.workdir or workdir


def summarise(measured: Activity) -> dict:
    """The numbers of a network as JSON takes them."""
    layers = {
        path: {
            "rates": [float(r) for r in rates],
            "dead": float(np.mean(measured.neurons[path] == 0)),
            "saturated": float(np.mean(measured.neurons[path] == 1)),
        }
        for path, rates in measured.rates.items()
    }
    weights = {
        path: {
            "macs": float(w.macs),
            "operations": float(w.operations.sum()),
            "analogue_input": bool(w.analogue),
        }
        for path, w in measured.weights.items()
    }
    return {
        "layers": layers,
        "weights": weights,
        "energy": energy(measured)._asdict(),
        "problems": problems(measured),
    }


def show(found: dict) -> str:
    """Writes what a person wants to read."""
    width = max(len(name) for name in found["layers"])
    lines = [f"{'layer':{width}}  firing rate at each step ... (neurons that never spike, always spike)"]
    for name, layer in found["layers"].items():
        rates = " ".join(f"{rate:.3f}" for rate in layer["rates"])
        ends = f"({100 * layer['dead']:.0f} %, {100 * layer['saturated']:.0f} %)"
        lines.append(f"{name:{width}}  {rates}  {ends}")
    e = found["energy"]
    lines += [
        "",
        f"operations of a sample  {e['synaptic_operations']:.4g} additions at spikes, and "
        f"{e['analogue_macs']:.4g} MACs of analogue input; the same ANN {e['ann_macs']:.4g} MACs",
        f"energy of a sample      {1e6 * e['joules']:.4g} uJ; the same ANN {1e6 * e['ann_joules']:.4g} uJ",
    ]
    return "\n".join([*lines, *(f"warning: {problem}" for problem in found["problems"])])


if __name__ == "__main__":
    sys.exit(main())
