"""Weak scaling: the time of an update whose batch grows with the number of devices.

    python experiments/scaling.py digits --counts 1 2 4
    python experiments/scaling.py cifar10 --rule sltt --precision bfloat16 --target tpu-v5e

The first takes a minute on two cores. Where there is no accelerator the devices are simulated. These share
the cores, so that more of them are not faster: what can be concluded is the cost of the sharding itself, the
time of n devices with a share of the batch each over that of one device with the whole batch. On real devices
"one device, share" is what perfect scaling would take. Writes scaling.json and scaling.md into the workdir.

With `--target` nothing is run. The update is compiled for one such device and for all of the largest count
together, by the compilers in the folder `--site` (`make compilers` installs them). The first says the least
time of a share by memory and arithmetic, the second how many bytes the devices sum; the bandwidth that is
stated for their links says the rest. All are bounds: neither the latency of links nor the launches of kernels
are in them, which are most of the time of a small network. Draws scaling.png as well.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
from common.command import check_numbers, command, markdown_table, write_results
from common.programs import SITE, cost_on
from common.runs import Experiment, Run, build, presets
from plots.scaling import plot_scaling
from tqdm import tqdm

from sltt_jax import training
from sltt_jax.analysis.accelerator_figures import accelerator, all_reduce_seconds
from sltt_jax.analysis.accelerators import AcceleratorCost, compile_devices

LARGE = 8, 16, 32, 64, 128, 256  # devices: whole hosts of 8 GPUs, and slices of a TPU


@dataclasses.dataclass(frozen=True)
class Scaling(Run):
    """Settings of the measurement; `batch_size` is that of one device.

    Attributes:
      counts: numbers of devices; 1, 2 and 4 by default, with a target 1 to 256.
      repeats: updates of each kind that are timed; the median counts.
      target: a GPU or TPU to compile for: a100, h100, h200, tpu-v5e, tpu-v5p, tpu-v6e.
      site: folder of the compilers for it.
    """

    counts: tuple[int, ...] | None = None
    repeats: int = 31
    target: str | None = None
    site: Path = SITE

    def __post_init__(self, *flags):
        super().__post_init__(*flags)
        check_numbers(self, "counts", most=1024)
        check_numbers(self, "repeats")
        if self.target is not None:
            accelerator(self.target)


@command(presets("scaling_", Scaling), __doc__)
def main(run: Scaling):
    if run.target is not None:
        expect(run, run.target)
        return
    counts = run.counts or (1, 2, 4)
    run.workdir.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_num_cpu_devices", max(counts))
    rows = [measure(run, count) for count in counts]
    device, table = jax.devices()[0].device_kind, tabulate(rows)
    write_results(run.workdir, "scaling", {"device": device, "preset": run.preset, "rows": rows}, table)
    print(f"{run.preset}, {run.rule}, T={run.T}, {device}\n\n{table}")


def expect(run: Scaling, target: str):
    """Writes, prints and draws what is to be expected of updates on 1 to many devices of a target."""
    counts = run.counts or ((1, 2, 4) if accelerator(target).host_devices else (1, 4)) + LARGE
    for count in counts:
        compile_devices(target, run.site, count)
    run.workdir.mkdir(parents=True, exist_ok=True)
    with tqdm(total=2, unit="program") as bar:
        alone = cost_on(run, run.batch_size, target, run.site)
        bar.update()
        most = max(counts)
        together = cost_on(run, run.batch_size * most, target, run.site, devices=most)
        bar.update()
    rows = [expected(run.batch_size, alone, together, count) for count in sorted(counts)]
    table = tabulate_expected(rows)
    found = {"target": target, "preset": run.preset, "rule": run.rule, "T": run.T, "precision": run.precision}
    write_results(run.workdir, "scaling", {**found, "rows": rows}, table)
    title = (
        f"{run.model}, {run.rule}, T={run.T}, {run.precision}, {run.batch_size} samples a device, {target}"
    )
    plot_scaling(rows, run.workdir / "scaling.png", title=title)
    reduces = f"{together.all_reduces:.0f} all-reduces an update, {together.looped_all_reduces:.0f} in a loop"
    print(f"{title}; {reduces}\n\n{table}")


def expected(share: int, alone: AcceleratorCost, together: AcceleratorCost, count: int) -> dict:
    """A row: `share` samples on each of `count` devices.

    Args:
      share: samples of a device.
      alone: cost of an update on one device.
      together: cost of one on several, whose sum over the devices is as large on `count` of them.
      count: devices.
    """
    size = together.all_reduce_bytes if count > 1 else 0.0
    exchange = all_reduce_seconds(accelerator(alone.device), count, size)
    seconds = alone.seconds + exchange
    return {
        "devices": count,
        "samples": share * count,
        "peak_bytes": (together if count > 1 else alone).peak_bytes,
        "all_reduce_bytes": size,
        "update_seconds": alone.seconds,
        "all_reduce_seconds": exchange,
        "samples_per_second": share * count / seconds,
        "efficiency": alone.seconds / seconds,
    }


def tabulate_expected(rows: list[dict]) -> str:
    """Writes a Markdown table, a line for every number of devices."""
    header = (
        "devices", "samples / update", "peak of a device (MiB)", "MB summed", "share of one device, at least",
        "all-reduce, at least", "samples / s, at most", "efficiency",
    )  # fmt: skip
    lines = (
        [
            str(row["devices"]),
            str(row["samples"]),
            f"{row['peak_bytes'] / 2**20:,.0f}",
            f"{row['all_reduce_bytes'] / 1e6:,.2f}",
            f"{1e3 * row['update_seconds']:,.3f} ms",
            f"{1e3 * row['all_reduce_seconds']:,.3f} ms",
            f"{row['samples_per_second']:,.0f}",
            f"{row['efficiency']:.3f}",
        ]
        for row in rows
    )
    return markdown_table(header, lines)


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
