"""Weak scaling: the time of an update whose batch grows with the number of devices.

    python experiments/scaling.py digits --counts 1 2 4

takes a minute on two cores. Where there is no accelerator the devices are simulated. These share the cores,
so that more of them are not faster: what can be concluded is the cost of the sharding itself, the time of n
devices with a share of the batch each over that of one device with the whole batch. On real devices "one
device, share" is what perfect scaling would take. Writes scaling.json and scaling.md into the workdir.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable

import jax
import tyro
from common.runs import Experiment, Run, build, prepare_xla, presets, write_json
from train import fail

from sltt_jax import training


@dataclasses.dataclass(frozen=True)
class Scaling(Run):
    """What is measured; `batch_size` is that of one device.

    Attributes:
      counts: numbers of devices.
      repeats: updates of each kind that are timed; the median counts.
    """

    counts: tuple[int, ...] = (1, 2, 4)
    repeats: int = 31

    def __post_init__(self):
        super().__post_init__()
        if not self.counts or min(self.counts) < 1:
            raise ValueError(f"counts must be numbers >= 1, got {self.counts}")
        if self.repeats < 1:
            raise ValueError(f"repeats must be >= 1, got {self.repeats}")


def on_one(experiment: Experiment) -> Callable[[], None]:
    """An update of the whole batch on the first device; every call goes on from the one before."""
    update = jax.jit(experiment.update(), donate_argnums=0)
    batch = jax.device_put(experiment.source.batch, experiment.devices[0])
    return _repeated(update, experiment.initial_state(jax.random.key(0)), batch)


def on_all(experiment: Experiment) -> Callable[[], None]:
    """The same update, with a part of the batch on each device."""
    devices = experiment.devices
    update = training.parallel(experiment.update(training.AXIS), devices, arguments=1, donate=True)
    state = training.replicate(experiment.initial_state(jax.random.key(0)), devices)
    return _repeated(update, state, training.split(experiment.source.batch, devices))


def _repeated(update, state, batch):
    carried = [state]

    def once():
        carried[0], _ = jax.block_until_ready(update(carried[0], batch))

    return once


def measure(run: Scaling, count: int) -> dict:
    """Seconds of an update by kind, medians of turns: "share" and "whole" on one device, "sharded" on all."""
    of = lambda samples, devices: build(
        dataclasses.replace(run, batch_size=samples, devices=devices, train_samples=samples)
    )
    programs = {
        "share": on_one(of(run.batch_size, 1)),
        "whole": on_one(of(run.batch_size * count, 1)),
        "sharded": on_all(of(run.batch_size * count, count)),
    }
    seconds = {name: [] for name in programs}
    for i in range(run.repeats + 2):  # the first compiles, the second warms up
        for name, program in programs.items():
            began = time.perf_counter()
            program()
            if i >= 2:
                seconds[name].append(time.perf_counter() - began)
    return {"devices": count, "samples": run.batch_size * count} | {
        name: statistics.median(values) for name, values in seconds.items()
    }


def tabulate(rows: list[dict]) -> str:
    """A Markdown table, a line for every number of devices."""
    lines = [
        "| devices | samples / update | one device, share | one device, whole batch | all devices "
        "| over one device, whole | samples / s |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        share, whole, sharded = (f"{1e3 * row[name]:.1f} ms" for name in ("share", "whole", "sharded"))
        lines.append(
            f"| {row['devices']} | {row['samples']} | {share} | {whole} | {sharded} "
            f"| {row['sharded'] / row['whole']:.2f} | {row['samples'] / row['sharded']:.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    try:
        run = tyro.extras.overridable_config_cli(presets("scaling_", Scaling), description=__doc__)
        prepare_xla()
        jax.config.update("jax_num_cpu_devices", max(run.counts))
        rows = [measure(run, count) for count in run.counts]
        run.workdir.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        return fail(error)
    device = jax.devices()[0].device_kind
    write_json(run.workdir / "scaling.json", {"device": device, "preset": run.preset, "rows": rows})
    table = tabulate(rows)
    (run.workdir / "scaling.md").write_text(table + "\n")
    print(f"{run.preset}, {run.rule}, T={run.T}, {device}\n\n{table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
