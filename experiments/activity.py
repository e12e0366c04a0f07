"""Activity of the neurons of a network: firing rates, dead and saturated layers, operations, energy, traffic.

    python experiments/activity.py digits                   a preset as it starts
    python experiments/activity.py runs/digits              a run as it ended, or one of its checkpoints

takes a few seconds. Writes activity.json and activity.png. The energy is the usual estimate for 45 nm CMOS,
4.6 pJ a multiplication and addition and 0.9 pJ an addition (Horowitz, ISSCC 2014), of arithmetic alone. What
an event-driven device would do (`sltt_jax.analysis.traffic`) is counted with the batch norms in the weights.
Of a run there are also the metrics of NeuroBench, under its names.
"""

import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from common.command import check_numbers, command, write_json
from common.measures import arguments, measure_activity
from common.presets import PRESETS
from common.runs import Experiment, Learned, Run, build
from common.workdirs import read_run, workdir_of
from plots.activity import plot_activity

from sltt_jax.analysis.activity import Activity, energy, problems
from sltt_jax.analysis.neurobench import neurobench
from sltt_jax.analysis.traffic import traffic
from sltt_jax.blocks import PyTree


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings: the network, and over how much it is looked at.

    Attributes:
      network: a preset, the workdir of a run, or one of its checkpoints.
      batch: samples; those of an update by default.
      T: time steps; those of the run by default.
      weight_bits: of a weight on an event-driven device.
      state_bits: of a word of a neuron's state there.
      reduced: of a preset, the recipe made small.
      made: of a preset, on made-up data of the same form.
      data_dir: directory of the data sets.
      workdir: directory of what is written; by default that of the run, or runs/activity_<preset>.
    """

    network: tyro.conf.Positional[str]
    batch: int | None = None
    T: int | None = None
    weight_bits: int = 8
    state_bits: int = 32
    reduced: bool = False
    made: bool = False
    data_dir: Path = Path("data")
    workdir: Path | None = None

    def __post_init__(self):
        check_numbers(self, "batch", "T", most=10**6)
        check_numbers(self, "weight_bits", "state_bits", most=64)
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
    measured = measure_activity(experiment, learned, batch, train=starts)
    _, state, _, _ = jax.eval_shape(partial(arguments, experiment), learned, batch)
    found = summarise(measured) | {"traffic": on_device(measured, state, settings)}
    if not starts:
        found["neurobench"] = metrics(experiment, learned, batch)
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


def on_device(measured: Activity, state: PyTree, settings: Settings) -> dict:
    """What a sample makes a device do, as JSON takes it."""
    counted = traffic(measured, state)
    bits = {"weight_bits": settings.weight_bits, "state_bits": settings.state_bits}
    return {**counted._asdict(), **bits, "bytes": counted.bytes(**bits)}


def metrics(experiment: Experiment, learned: Learned, batch: PyTree) -> dict:
    """NeuroBench's metrics of a network on a batch."""
    params, state, inputs, _ = arguments(experiment, learned, batch)
    found = neurobench(experiment.model, params, state, inputs)
    return {**found._asdict(), "synaptic_operations": found.synaptic_operations._asdict()}


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
    e, t = found["energy"], found["traffic"]
    lines += [
        "",
        f"operations of a sample  {e['synaptic_operations']:.4g} additions at spikes, and "
        f"{e['analogue_macs']:.4g} MACs of analogue input; the same ANN {e['ann_macs']:.4g} MACs",
        f"energy of a sample      {1e6 * e['joules']:.4g} uJ; the same ANN {1e6 * e['ann_joules']:.4g} uJ",
        f"on a device             {t['spikes']:.4g} spikes sent, {t['neuron_updates']:.4g} neuron updates",
        f"memory of a device      {t['weight_reads']:.4g} weights of {t['weight_bits']} bits read, "
        f"{t['state_reads']:.4g} words of {t['state_bits']} bits read and as many written: "
        f"{t['bytes'] / 2**10:.4g} KiB",
    ]
    if "neurobench" in found:
        lines += ["", "NeuroBench"]
    for name, value in found.get("neurobench", {}).items():
        entries = value.items() if isinstance(value, dict) else [("", value)]
        lines.append(f"{name:22}  {', '.join(f'{entry} {number:.6g}'.strip() for entry, number in entries)}")
    return "\n".join([*lines, *(f"warning: {problem}" for problem in found["problems"])])


if __name__ == "__main__":
    sys.exit(main())
