"""What a training update costs, from the compiled program and without running it.

    python experiments/cost.py digits --T 1 2 4 8 16 32 64
    python experiments/cost.py --model resnet18 --rules bptt sltt sltt_k:1 --T 1 6 20 --batch 16 --chunk 1 T
    python experiments/cost.py --model resnet18 --rules bptt sltt --T 6 --largest-batch 16

The first takes about a minute on two cores. It writes cost.json (bytes, operations, seconds to compile),
cost.md and memory.png; with `--time 10` updates are run as well, for time.png and tradeoff.png (memory
against time over the chunks of sltt). The last asks for the largest batch that fits in 16 gigabytes.
"""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import tyro
from common.configs import PRESETS, Model
from plots.cost import plot_memory, plot_time, plot_tradeoff
from rule_names import parse_rule, show_rule
from common.runs import Experiment, Run, build, write_json
from tqdm import tqdm
from train import fail

from sltt_jax import blocks, functional
from sltt_jax.analysis import Cost, flops, largest_batch, program_cost, time_update
from sltt_jax.cpu import tune_xla

# The recipe that gives a network its data, loss and optimizer where none is named.
RECIPES = {"resnet": "cifar10", "vgg": "dvs_cifar10", "nf_resnet": "imagenet_stage2", "mlp": "digits_mlp"}
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Costs:
    """What is compiled.

    Attributes:
      preset: network, form of the data, batch size, loss and optimizer; by default a recipe of the network.
      model: another network.
      width: multiplies its channels.
      batch: samples an update; of the preset by default.
      rules: bptt, bptt:remat, tbptt:<window>, sltt, sltt_k:<k>.
      chunk: steps that go through the network together, of sltt; "T" are all.
      T: numbers of time steps; rules that need more are left out.
      time: run the updates too, and take the median of this many.
      largest_batch: in place of all that, the largest batch that fits into so many gigabytes (10^9 bytes).
      workdir: directory of what is written.
    """

    preset: tyro.conf.Positional[str | None] = None
    model: Model | None = None
    width: float | None = None
    batch: Annotated[int | None, tyro.conf.arg(aliases=("--batch-size",))] = None
    rules: tuple[str, ...] = ("bptt", "tbptt:4", "sltt", "sltt_k:1")
    chunk: tuple[str, ...] = ("1", "4")
    T: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    time: int | None = None
    largest_batch: float | None = None
    workdir: Path = Path("runs/cost")

    def __post_init__(self):
        if self.preset not in (None, *PRESETS):
            raise ValueError(f"unknown preset {self.preset!r}; there are {', '.join(PRESETS)}")
        if not self.T or min(self.T) < 1:
            raise ValueError(f"T must be numbers >= 1, got {self.T}")
        if not self.rules:
            raise ValueError("rules must name at least one rule")
        for name in self.rules:
            parse_rule(name)
        if not self.chunk or not all(c == "T" or (c.isdecimal() and int(c) > 0) for c in self.chunk):
            raise ValueError(f"chunk must be numbers >= 1 or T, got {' '.join(self.chunk) or 'nothing'}")
        for name in ("batch", "time", "largest_batch", "width"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be > 0, got {value}")
        if self.time is not None and self.largest_batch is not None:
            raise ValueError("largest_batch runs nothing, and so has no time")


class Program(NamedTuple):
    """The update of a run over a batch of a given size, traced; `state` and `batch` are what it takes."""

    traced: jax.stages.Traced
    state: Any
    batch: Any
    forward_flops: float
    backward_share: float

    def cost(self) -> tuple[jax.stages.Compiled, Cost]:
        """The compiled program and its cost."""
        return program_cost(self.traced, forward_flops=self.forward_flops, backward_share=self.backward_share)


def trace_update(settings: Run, batch: int, *, real: bool = False) -> Program:
    """The update of a run, on made-up data of the form of its own.

    Costs do not depend on what is in the data, so that a batch of any size need not exist.

    Args:
      settings: the run.
      batch: samples of an update.
      real: with a state and a batch that exist, to be run.

    Raises:
      ValueError: a setting that cannot be.
    """
    made = batch if real else 1
    few = {"batch_size": made, "train_samples": made, "test_samples": 1, "made": True, "devices": 1}
    experiment = build(dataclasses.replace(settings, **few))
    key = jax.random.key(settings.seed)
    if real:
        state, data = experiment.initial_state(key), jax.device_put(experiment.source.batch)
    else:
        state = jax.eval_shape(experiment.initial_state, key)
        sized = lambda a: jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype)
        data = jax.tree.map(sized, experiment.source.batch)
    traced = jax.jit(experiment.update(), donate_argnums=0).trace(state, data)
    share = settings.k / settings.T if settings.rule == "sltt_k" else 1.0
    return Program(traced, state, data, _forward_flops(experiment, state, data), share)


def _forward_flops(experiment: Experiment, state, batch) -> float:
    def forward(params, variables, x):
        inputs = experiment.source.encode(x, None)
        start = functional.at_rest(experiment.model, variables, blocks.first_step(inputs))
        return blocks.run(functional.applier(experiment.model, key=jax.random.key(0)), params, start, inputs)

    return flops(jax.jit(forward).trace(state.params, state.variables, batch["x"]))


def recipe(costs: Costs) -> tuple[Run, int]:
    """The run that all programs are variants of, and the batch size."""
    family = (costs.model or "convnet").rstrip("0123456789")
    preset = PRESETS[costs.preset or RECIPES.get(family, "digits")]()
    changed = {name: getattr(costs, name) for name in ("model", "width") if getattr(costs, name) is not None}
    smallest = {"T": 1, "k": 1, "window": 1, "chunk": 1}
    return Run(**{**vars(preset), **smallest, **changed}), costs.batch or preset.batch_size


def variants(costs: Costs, base: Run) -> Iterator[tuple[str, Run]]:
    """Runs of every rule, chunk and T, each with the name of its rule; what needs more steps is left out."""
    for rule in costs.rules:
        for chunk in costs.chunk if rule == "sltt" else ("1",):
            name = show_rule(rule) if chunk == "1" else f"{rule}(chunk={chunk})"
            for T in costs.T:
                settings = {**parse_rule(rule), "T": T, "chunk": T if chunk == "T" else int(chunk)}
                needs = max(settings.get(key, 1) for key in ("k", "window", "chunk"))
                if T >= needs:
                    yield name, dataclasses.replace(base, **settings)


def measure(run: Run, batch: int, repeats: int | None) -> dict:
    """A row of the table: what the update of a run costs, and its median time if `repeats` says so."""
    program = trace_update(run, batch, real=repeats is not None)
    compiled, cost = program.cost()
    row = {"T": run.T, "chunk": run.chunk, "total_bytes": cost.total_bytes, **dataclasses.asdict(cost)}
    row["backward_flops"] = cost.backward_flops
    if repeats is not None:
        row["seconds"] = time_update(compiled, program.state, program.batch, repeats=repeats).seconds
    return row


def fitting(run: Run, gigabytes: float) -> int:
    """The largest batch whose update fits into memory."""
    return largest_batch(lambda batch: trace_update(run, batch).cost()[1].total_bytes, gigabytes)


def tabulate(rows: dict[str, list[dict]], *, T: tuple[int, ...]) -> str:
    """A Markdown table, a line for every T and rule; in brackets the ratio to bptt of the same T."""
    timed = any("seconds" in row for points in rows.values() for row in points)
    columns = {
        "memory (MiB)": lambda row: (row["total_bytes"] / MIB, ",.2f"),
        "of it temporaries": lambda row: (row["temp_bytes"] / MIB, ",.2f"),
        "GFLOP forward": lambda row: (row["forward_flops"] / 1e9, ",.3f"),
        "backward": lambda row: (row["backward_flops"] / 1e9, ",.3f"),
        "compile (s)": lambda row: (row["compile_seconds"], ".1f"),
    }
    if timed:
        columns["update (ms)"] = lambda row: (1e3 * row["seconds"], ",.1f")
    compared = "memory (MiB)", "of it temporaries", "update (ms)"
    lines = ["| T | rule | " + " | ".join(columns) + " |", "|---" * (len(columns) + 2) + "|"]
    for t in T:
        at = {name: row for name, points in rows.items() for row in points if row["T"] == t}
        for name, row in at.items():
            cells = []
            for column, value in columns.items():
                number, form = value(row)
                ratio = column in compared and name != "bptt" and "bptt" in at
                over = f" ({number / value(at['bptt'])[0]:.3f})" if ratio else ""
                cells.append(f"{number:{form}}{over}")
            lines.append(f"| {t} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def tabulate_batches(rows: dict[str, dict[int, int]]) -> str:
    """A Markdown table of the largest batches, a line for every rule."""
    steps = sorted({T for sizes in rows.values() for T in sizes})
    lines = ["| rule | " + " | ".join(f"T={T}" for T in steps) + " |", "|---" * (len(steps) + 1) + "|"]
    for name, sizes in rows.items():
        lines.append(f"| {name} | " + " | ".join(str(sizes.get(T, "")) for T in steps) + " |")
    return "\n".join(lines)


def main() -> int:
    try:
        costs = tyro.cli(Costs, description=__doc__)
        tune_xla()
        base, batch = recipe(costs)
        jobs = list(variants(costs, base))
        if not jobs:
            raise ValueError(f"none of the rules can be run over T={costs.T} steps")
        costs.workdir.mkdir(parents=True, exist_ok=True)
        bar = tqdm(jobs, unit="program" if costs.largest_batch is None else "search")
        if costs.largest_batch is not None:
            batches: dict[str, dict[int, int]] = {}
            for name, run in bar:
                batches.setdefault(name, {})[run.T] = fitting(run, costs.largest_batch)
            write_json(
                costs.workdir / "largest_batch.json",
                {"model": base.model, "data": base.data, "gigabytes": costs.largest_batch, "rules": batches},
            )
            print(f"largest batch of {base.model} on {base.data} in {costs.largest_batch:g} GB\n")
            print(tabulate_batches(batches))
            return 0
        rows: dict[str, list[dict]] = {}
        for name, run in bar:
            rows.setdefault(name, []).append(measure(run, batch, costs.time))
    except (ValueError, OSError) as error:
        return fail(error)
    write_json(
        costs.workdir / "cost.json",
        {"model": base.model, "data": base.data, "width": base.width, "batch": batch, "rules": rows},
    )
    table = tabulate(rows, T=costs.T)
    (costs.workdir / "cost.md").write_text(table + "\n")
    title = f"{base.model}, {base.data}, batch {batch}"
    plot_memory(rows, costs.workdir / "memory.png", title=title)
    if costs.time is not None:
        plot_time(rows, costs.workdir / "time.png", title=title)
        if len(costs.chunk) > 1 and "sltt" in costs.rules:
            plot_tradeoff(rows, costs.workdir / "tradeoff.png", title=title)
    print(f"\n{title}, {jax.devices()[0].device_kind} (in brackets: over bptt)\n\n{table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
