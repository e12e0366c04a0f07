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
from common.command import check_numbers, command, markdown_table, write_results
from common.runs import Experiment, Run, build, presets

from sltt_jax import training


@dataclasses.dataclass(frozen=True)
class Scaling(Run):
    """Settings of the measurement; `batch_size` is that of one device.

    Attributes:
      counts: numbers of devices.
      repeats: updates of each kind that are timed; the median counts.
    """

    counts: tuple[int, ...] = (1, 2, 4)
    repeats: int = 31

    def __post_init__(self, *flags):
        super().__post_init__(*flags)
        check_numbers(self, "counts", most=1024)
        check_numbers(self, "repeats")


@command(presets("scaling_", Scaling), __doc__)
def main(run: Scaling):
    run.workdir.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_num_cpu_devices", max(run.counts))
    rows = [measure(run, count) for count in run.counts]
    device, table = jax.devices()[0].device_kind, tabulate(rows)
    write_results(run.workdir, "scaling", {"device": device, "preset": run.preset, "rows": rows}, table)
    print(f"{run.preset}, {run.rule}, T={run.T}, {device}\n\n{table}")


def on_one(experiment: Experiment) -> Callable[[], None]:
    """Makes an update of the whole batch on the first device; every call starts from the state before."""
    update = jax.jit(experiment.update(), donate_argnums=0)
    batch = jax.device_put(experiment.data.batch, experiment.devices[0])
    return _repeated(update, experiment.initial_state(jax.random.key(0)), batch)


def on_all(experiment: Experiment) -> Callable[[], None]:
    """Makes the same update, with a part of the batch on each device."""
    devices = experiment.devices
    update = training.parallel(experiment.update(training.AXIS), devices, arguments=1, donate=True)
    state = training.replicate(experiment.initial_state(jax.random.key(0)), devices)
    return _repeated(update, state, training.split(experiment.data.batch, devices))


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
    """Writes a Markdown table, a line for every number of devices."""
    header = (
        "devices", "samples / update", "one device, share", "one device, whole batch", "all devices",
        "over one device, whole", "samples / s",
    )  # fmt: skip
    lines = (
        [
            str(row["devices"]),
            str(row["samples"]),
            *(f"{1e3 * row[name]:.1f} ms" for name in ("share", "whole", "sharded")),
            f"{row['sharded'] / row['whole']:.2f}",
            f"{row['samples'] / row['sharded']:.0f}",
        ]
        for row in rows
    )
    return markdown_table(header, lines)


if __name__ == "__main__":
    sys.exit(main())
