"""Cost of a training update, from the compiled program and without running it.

    python experiments/cost.py digits --T 1 2 4 8 16 32 64
    python experiments/cost.py --model resnet18 --rules bptt sltt "sltt(T)" "sltt_k(1)" --T 1 6 20 --batch 16
    python experiments/cost.py --model resnet18 --rules bptt sltt --T 6 --largest-batch 16
    python experiments/cost.py --model resnet18 --rules bptt sltt --T 6 --precision bfloat16 --target h100
    python experiments/cost.py digits --rules sltt --T 6 --target tpu-v5e --devices 16 --batch 1024
    python experiments/cost.py --model resnet18 --rules sltt --T 6 --target h100 --largest-batch device

The first takes about a minute on two cores. It writes cost.json (bytes, operations, seconds to compile),
cost.md and memory.png; with `--time 10` updates are run as well, for time.png and tradeoff.png (memory
against time over the chunks of sltt). The third asks for the largest batch that fits in 16 gigabytes.

With `--target` the updates are compiled for a GPU or TPU, which need not be there, by the compilers that are
in the folder `--site` (`make compilers` installs them): memory of each device, launches, bytes moved, the
least time by its memory and its arithmetic and, with several devices, the sum of their gradients by the
bandwidth of their links. Large networks take the TPU's compiler minutes.
"""

import dataclasses
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro
from common.command import check_numbers, command, markdown_table, write_json, write_results
from common.configs import Model
from common.presets import PRESETS
from common.programs import SITE, cost_on, trace_update
from common.rule_flags import steps_needed
from common.runs import Run
from plots.cost import plot_memory, plot_time, plot_tradeoff
from tqdm import tqdm

from sltt_jax import Rule, parse_rule, training
from sltt_jax.analysis import accelerators, largest_batch, time_update
from sltt_jax.analysis.accelerator_figures import accelerator
from sltt_jax.analysis.limits import GIGABYTE
from sltt_jax.cpu import tune_xla

# The recipe that gives a network its data, loss and optimizer where none is named.
RECIPES = {"resnet": "cifar10", "vgg": "dvs_cifar10", "nf_resnet": "imagenet_stage2", "mlp": "digits_mlp"}
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Costs:
    """Settings: the updates that are compiled.

    Attributes:
      preset: network, form of the data, batch size, loss and optimizer; by default a recipe of the network.
      model: another network.
      width: multiplies its channels.
      batch: samples an update; of the preset by default.
      rules: as `train.py` takes them, "sltt_k(1)"; T stands for the number of time steps, "sltt(T)".
      T: numbers of time steps; rules that need more are left out.
      time: run the updates too, and take the median of this many.
      largest_batch: in place of all that, the largest batch that fits into so many gigabytes (10^9 bytes), or
        into the "device" that is the target.
      precision: of convolutions and matrix products; of the preset by default.
      target: a GPU or TPU to compile for: a100, h100, h200, tpu-v5e, tpu-v5p, tpu-v6e.
      site: folder of the compilers for it.
      devices: of the target, which share a batch.
      workdir: directory of what is written.
    """

    preset: tyro.conf.Positional[str | None] = None
    model: Model | None = None
    width: float | None = None
    batch: Annotated[int | None, tyro.conf.arg(aliases=("--batch-size",))] = None
    rules: tuple[str, ...] = ("bptt", "tbptt(4)", "sltt", "sltt(4)", "sltt_k(1)")
    T: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    time: int | None = None
    largest_batch: float | Literal["device"] | None = None
    precision: Literal["float32", "bfloat16", "float16"] | None = None
    target: str | None = None
    site: Path = SITE
    devices: int = 1
    workdir: Path = Path("runs/cost")

    def __post_init__(self):
        if self.preset not in (None, *PRESETS):
            raise ValueError(f"unknown preset {self.preset!r}; there are {', '.join(PRESETS)}")
        for text in self.rules:
            rule_at(text, 1)
        check_numbers(self, "T", "batch", most=10**6)
        check_numbers(self, "width", least=1 / 64, most=64)
        check_numbers(self, "time")
        if isinstance(self.largest_batch, float) and not 0 < self.largest_batch < math.inf:
            raise ValueError(f"largest_batch must be > 0, got {self.largest_batch}")
        if self.target is not None:
            accelerator(self.target)
            if self.time is not None:
                raise ValueError(f"nothing runs on target {self.target}, and so has no time")
        elif self.devices != 1 or self.largest_batch == "device":
            raise ValueError("devices, and largest_batch=device, are of a target: --target h100")
        check_numbers(self, "devices", most=1024)
        if self.time is not None and self.largest_batch is not None:
            raise ValueError("largest_batch runs nothing, and so has no time")


@command(Costs, __doc__, xla=tune_xla)  # nothing is kept of the programs, whose compilation is timed
def main(costs: Costs):
    base, batch = recipe(costs)
    jobs = list(variants(costs, base))
    if not jobs:
        raise ValueError(f"none of the rules can be run over T={costs.T} steps")
    if costs.target is not None:
        accelerators.compile_devices(costs.target, costs.site, costs.devices)
        training.check_divides(batch, costs.devices)
    costs.workdir.mkdir(parents=True, exist_ok=True)
    of = {"model": base.model, "data": base.data}
    if costs.largest_batch is not None:
        search(costs, of, jobs)
        return
    if costs.target is not None:
        estimate(costs.target, costs, of, jobs, batch)
        return
    rows: dict[str, list[dict]] = {}
    for name, run in tqdm(jobs, unit="program"):
        rows.setdefault(name, []).append(measure(run, batch, costs.time))
    table, found = tabulate(rows, costs.T), {**of, "width": base.width, "batch": batch, "rules": rows}
    write_results(costs.workdir, "cost", found, table)
    title = f"{base.model}, {base.data}, batch {batch}"
    plot_memory(rows, costs.workdir / "memory.png", title=title)
    if costs.time is not None:
        plot_time(rows, costs.workdir / "time.png", title=title)
        if sum(name.split("(")[0] == "sltt" for name in rows) > 1:
            plot_tradeoff(rows, costs.workdir / "tradeoff.png", title=title)
    print(f"\n{title}, {jax.devices()[0].device_kind} (in brackets: over bptt)\n\n{table}")


def search(costs: Costs, of: dict, jobs: list[tuple[str, Run]]):
    """Finds the largest batches that fit, and writes and prints them."""
    target, gigabytes = costs.target, costs.largest_batch
    if gigabytes == "device":
        gigabytes = accelerator(str(target)).memory_bytes / GIGABYTE
    assert gigabytes is not None
    sizes: dict[str, dict[int, int]] = {}
    for name, run in tqdm(jobs, unit="search"):
        found = fitting_on(target, run, gigabytes, costs) if target else fitting(run, gigabytes)
        sizes.setdefault(name, {})[run.T] = found
    found = {**of, "target": target, "devices": costs.devices, "gigabytes": gigabytes, "rules": sizes}
    write_json(costs.workdir / "largest_batch.json", found)
    several = "" if costs.devices == 1 else f"{costs.devices} x "
    where = f" of {several}{target}" if target else ""
    print(f"largest batch of {of['model']} on {of['data']} in {gigabytes:g} GB{where}\n")
    print(tabulate_batches(sizes))


def estimate(target: str, costs: Costs, of: dict, jobs: list[tuple[str, Run]], batch: int):
    """Compiles the updates for the target, and writes and prints what they cost there."""
    rows: dict[str, list[dict]] = {}
    for name, run in (bar := tqdm(jobs, unit="program")):
        bar.set_postfix_str(f"{name}, T={run.T}")
        rows.setdefault(name, []).append(estimate_one(target, costs, run, batch))
    run, table = jobs[0][1], tabulate_target(rows, costs.T)
    found = {**of, "width": run.width, "batch": batch, "precision": run.precision, "target": target}
    write_results(costs.workdir, "target", {**found, "devices": costs.devices, "rules": rows}, table)
    several = "" if costs.devices == 1 else f"{costs.devices} x "
    print(f"\n{run.model}, {run.data}, batch {batch}, {run.precision}, {several}{target}\n\n{table}")
    for name, points in rows.items():
        for row in points:
            if "too_large" in row:
                print(f"\n{name}, T={row['T']}: {row['too_large']}")


def estimate_one(target: str, costs: Costs, run: Run, batch: int) -> dict:
    """A row of the table: what the update of a run costs on the target, or why it does not fit there."""
    try:
        found = cost_on(run, batch, target, costs.site, devices=costs.devices)
    except MemoryError as error:
        return {"T": run.T, "devices": costs.devices, "too_large": str(error)}
    derived = {"seconds": found.seconds, "efficiency": found.efficiency}
    return {"T": run.T, **dataclasses.asdict(found), **derived}


def recipe(costs: Costs) -> tuple[Run, int]:
    """The run that all programs are variants of, and the batch size."""
    family = (costs.model or "convnet").rstrip("0123456789")
    changed = {
        name: getattr(costs, name)
        for name in ("model", "width", "precision")
        if getattr(costs, name) is not None
    }
    run = Run.of(costs.preset or RECIPES.get(family, "digits"), **changed)
    return run, costs.batch or run.batch_size


def rule_at(text: str, T: int) -> Rule:
    """The rule of a spelling in which T stands for the number of time steps."""
    return parse_rule(re.sub(r"\bT\b", str(T), text))


def variants(costs: Costs, base: Run) -> Iterator[tuple[str, Run]]:
    """Runs of every rule and T, each with the spelling of its rule; what needs more steps is left out."""
    for text in costs.rules:
        for T in costs.T:
            rule = rule_at(text, T)
            if T >= steps_needed(rule):
                yield text, dataclasses.replace(base, T=T, rule=str(rule))


def measure(run: Run, batch: int, repeats: int | None) -> dict:
    """A row of the table: what the update of a run costs, and its median time if `repeats` says so."""
    program = trace_update(run, batch, real=repeats is not None)
    compiled, cost = program.cost()
    chunk = getattr(parse_rule(run.rule), "chunk", 1)
    row = {"T": run.T, "chunk": chunk, "total_bytes": cost.total_bytes, **dataclasses.asdict(cost)}
    row["backward_flops"] = cost.backward_flops
    if repeats is not None:
        row["seconds"] = time_update(compiled, program.state, program.batch, repeats=repeats).seconds
    return row


def fitting(run: Run, gigabytes: float) -> int:
    """The largest batch whose update fits into memory."""
    return largest_batch(lambda batch: trace_update(run, batch).cost()[1].total_bytes, gigabytes)


def fitting_on(target: str, run: Run, gigabytes: float, costs: Costs) -> int:
    """The largest batch that fits into the memory of the devices of a target, all together."""
    n = costs.devices

    def peak(share):
        try:
            return cost_on(run, n * share, target, costs.site, devices=n).peak_bytes
        except MemoryError:
            return math.inf

    return n * largest_batch(peak, gigabytes)


def tabulate(rows: dict[str, list[dict]], steps: tuple[int, ...]) -> str:
    """Writes a Markdown table, a line for every T and rule; in brackets the ratio to bptt of the same T."""
    columns = {
        "memory (MiB)": lambda row: (row["total_bytes"] / MIB, ",.2f"),
        "of it temporaries": lambda row: (row["temp_bytes"] / MIB, ",.2f"),
        "GFLOP forward": lambda row: (row["forward_flops"] / 1e9, ",.3f"),
        "backward": lambda row: (row["backward_flops"] / 1e9, ",.3f"),
        "compile (s)": lambda row: (row["compile_seconds"], ".1f"),
    }
    if any("seconds" in row for points in rows.values() for row in points):
        columns["update (ms)"] = lambda row: (1e3 * row["seconds"], ",.1f")
    return _lines(rows, steps, columns, compared=("memory (MiB)", "of it temporaries", "update (ms)"))


def tabulate_target(rows: dict[str, list[dict]], steps: tuple[int, ...]) -> str:
    """Writes a Markdown table of a target, a line for every T and rule; in brackets the ratio to bptt."""
    columns = {
        "peak of a device (MiB)": lambda row: (row["peak_bytes"] / MIB, ",.0f"),
        "temporaries": lambda row: (row["temp_bytes"] / MIB, ",.0f"),
        "launches": lambda row: (row["launches"], ",.0f"),
        "GB moved": lambda row: (row["moved_bytes"] / 1e9, ",.2f"),
        "TFLOP": lambda row: (row["flops"] / 1e12, ",.3f"),
        "ms by memory": lambda row: (1e3 * row["memory_seconds"], ",.2f"),
        "ms by arithmetic": lambda row: (1e3 * row["compute_seconds"], ",.2f"),
    }
    if any(row["devices"] > 1 for points in rows.values() for row in points):
        columns |= {
            "all-reduces": lambda row: (row["all_reduces"], ".0f"),
            "MB in them": lambda row: (row["all_reduce_bytes"] / 1e6, ",.2f"),
            "ms of them": lambda row: (1e3 * row["all_reduce_seconds"], ",.3f"),
            "efficiency": lambda row: (row["efficiency"], ".3f"),
        }
    return _lines(rows, steps, columns, compared=("peak of a device (MiB)", "GB moved"))


def _lines(rows, steps, columns, *, compared):
    lines = []
    for T in steps:
        at = {name: row for name, points in rows.items() for row in points if row["T"] == T}
        bptt = at.get("bptt")
        if bptt and "too_large" in bptt:
            bptt = None
        for name, row in at.items():
            if "too_large" in row:
                lines.append([str(T), name, "does not fit", *[""] * (len(columns) - 1)])
                continue
            cells = []
            for column, value in columns.items():
                number, form = value(row)
                ratio = column in compared and name != "bptt" and bptt is not None
                over = f" ({number / value(bptt)[0]:.3f})" if ratio else ""
                cells.append(f"{number:{form}}{over}")
            lines.append([str(T), name, *cells])
    return markdown_table(["T", "rule", *columns], lines)


def tabulate_batches(sizes: dict[str, dict[int, int]]) -> str:
    """Writes a Markdown table of the largest batches, a line for every rule."""
    steps = sorted({T for of_rule in sizes.values() for T in of_rule})
    lines = ([name, *(str(of_rule.get(T, "")) for T in steps)] for name, of_rule in sizes.items())
    return markdown_table(["rule", *(f"T={T}" for T in steps)], lines)


if __name__ == "__main__":
    sys.exit(main())
