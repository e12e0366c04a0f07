"""The first ten minutes on a GPU: whether it computes the right thing, and how fast, in how much memory.

    python experiments/gpu_report.py
    python experiments/gpu_report.py jax kernels --limit 200

Stages, the most important first; each runs in a process of its own, and any can be run alone:

  sanity        gradients against those of the CPU, and the numbers of the authors' code (parity.py)
  jax           updates of this library: time, memory, operations
  pytorch       the same updates written by hand in PyTorch, eager
  compiled      and through `torch.compile`
  spikingjelly  and in spikingjelly
  memory        memory against the number of time steps, of this library and of PyTorch
  kernels       launches of an update, and the kernels that take the most time
  protocols     updates that others measure, in all of these libraries

All use the same networks, weights and inputs (peers/workloads.py). float32 is TF32 in matrix products and
convolutions in all libraries, bfloat16 is PyTorch's automatic mixed precision; PyTorch has channels last and
tries cuDNN's algorithms, as XLA does. An update is waited for before the next. Nothing is downloaded, and a
library that is not installed is named in its rows.

Rows are added to report.jsonl one by one, so that what was measured stays when time is over, and those that
were measured on a GPU to experiments/results/gpu.jsonl as well. report.md has the rows of the workdir as a
table. A row that failed holds its error, and the exit status is not 0 then; what there was no time for is
skipped. `--tiny` is a rehearsal with a small network in place of all, on any machine.
"""

import dataclasses
import importlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import parity
import tyro
from common.command import check_numbers, command, prepare_xla
from common.device_checks import check_deviation
from common.kernels import profile
from common.result_rows import Rows, read_rows, tabulate
from peers.gpu_plan import CONV, ENTRIES, SHARES, STAGES, Entry, Stage
from peers.protocol import CannotError, Program, measure
from peers.workloads import WORKLOADS, Workload, tiny

from sltt_jax import training

EXPERIMENTS = Path(__file__).parent
RESULTS = EXPERIMENTS / "results" / "gpu.jsonl"
CASES = EXPERIMENTS.parent / "tests" / "parity"

# A stage begins nothing after its time, and is ended so long after it.
GRACE_SECONDS = 20.0

# Exit statuses, beside those of every script.
NO_ACCELERATOR, ROWS_FAILED = 3, 4

OPTIONAL = "torch", "spikingjelly"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings: the stages, and how long they may take.

    Attributes:
      stages: in this order.
      limit: seconds that all of them may take; a stage that is still at work is ended up to 20 s later.
      repeats: updates of each program that are timed, at least.
      seconds: of each program that are timed, at least, up to 200 updates.
      tiny: a small network in place of all workloads, on any device; no measurement.
      workdir: directory of what is written.
    """

    stages: tyro.conf.Positional[tuple[Stage, ...]] = STAGES
    limit: float = 580.0
    repeats: int = 7
    seconds: float = 1.0
    tiny: bool = False
    workdir: Path = Path("runs/gpu_report")

    def __post_init__(self):
        check_numbers(self, "limit", "repeats")
        check_numbers(self, "seconds", least=0)


def prepare():
    """Prepares XLA, and leaves the memory that JAX does not need to the other libraries."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    prepare_xla()


@command(Settings, __doc__, xla=prepare)
def main(settings: Settings):
    path = settings.workdir / "report.jsonl"
    if len(settings.stages) > 1:
        failed = run_all(settings, path)
    else:
        failed = run_stage(settings, path)
    if failed:
        print(f"rows have errors, see {path}", file=sys.stderr)
        raise SystemExit(ROWS_FAILED)


def run_all(settings: Settings, path: Path) -> bool:
    """Runs every stage in a process of its own; whether anything failed."""
    ends, failed = time.monotonic() + settings.limit, False
    for i, stage in enumerate(settings.stages):
        left = settings.stages[i:]
        seconds = max(ends - time.monotonic(), 1.0) * SHARES[stage] / sum(SHARES[s] for s in left)
        seconds = max(seconds, 1.0)
        alone = dataclasses.replace(settings, stages=(stage,), limit=seconds)
        rows = Rows([path], 0.0, stage=stage)
        try:
            status = subprocess.run(arguments(alone), timeout=seconds + GRACE_SECONDS).returncode
        except subprocess.TimeoutExpired:
            rows.add(skipped=f"the rest, of which one was at work after {seconds + GRACE_SECONDS:.0f} s")
            continue
        if status == NO_ACCELERATOR:
            raise SystemExit(status)
        if status not in (0, ROWS_FAILED):
            rows.add(error=f"the process ended with status {status}")
        failed |= status != 0
    return failed


def arguments(settings: Settings) -> list[str]:
    """The command of this script with the same settings."""
    given = [sys.executable, __file__, *settings.stages, "--tiny" if settings.tiny else "--no-tiny"]
    for name in ("limit", "repeats", "seconds", "workdir"):
        given += [f"--{name}", str(getattr(settings, name))]
    return given


def run_stage(settings: Settings, path: Path) -> bool:
    """Runs a stage in this process; whether a row failed."""
    (stage,) = settings.stages
    platform = jax.default_backend()
    if platform == "cpu" and not settings.tiny:
        print("error: JAX has no accelerator here; --tiny rehearses the report on the CPU", file=sys.stderr)
        raise SystemExit(NO_ACCELERATOR)
    paths = [path, RESULTS] if platform == "gpu" and not settings.tiny else [path]
    rows = Rows(paths, settings.limit, stage=stage, **({"tiny": True} if settings.tiny else {}))
    for names, figures in planned(stage, settings):
        rows.attempt(figures, **names)
    training.write_text(path.with_suffix(".md"), tabulate(read_rows(path)) + "\n")
    return rows.failed


def planned(
    stage: Stage, settings: Settings
) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]:
    """Yields the rows of a stage: what they are of, and what measures them."""
    if stage == "sanity":
        yield from checks(settings)
        return
    figures = launches if stage == "kernels" else times
    for entry in ENTRIES[stage]:
        workload = WORKLOADS[entry.workload]
        workload = workload if entry.T is None else workload._replace(T=entry.T)
        workload = tiny(workload) if settings.tiny else workload
        names = {**entry._asdict(), "T": workload.T, "batch": workload.batch}
        yield names, partial(where_it_can, figures, entry, workload, settings)


def checks(settings: Settings) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]:
    """Yields the rows of the stage "sanity"."""
    workload = WORKLOADS[CONV]._replace(batch=8, T=4)
    workload = tiny(workload) if settings.tiny else workload
    for dtype, rule in product(("float64", "float32"), ("sltt", "sltt(4)", "bptt")):
        names = {"check": "against the CPU", "workload": CONV, "precision": dtype, "rule": rule}
        yield names, partial(check_deviation, workload, rule, dtype, jax.devices()[0])
    cases = () if settings.tiny else ("resnet18", "vgg11_dvs", "nfresnet34")  # minutes on a CPU
    for case, rule in product(cases, ("sltt", "bptt")):
        names = {"check": f"{case}.json", "precision": "float64", "rule": rule}
        yield names, partial(check_case, CASES / f"{case}.json", rule)


def check_case(path: Path, rule: str) -> dict[str, Any]:
    """The largest error against the numbers of the authors' code.

    Raises:
      ArithmeticError: one is above its bound.
    """
    with jax.enable_x64(True):
        found = parity.check(parity.load(path), only=(rule,))
    if failures := parity.failures(found):
        raise ArithmeticError("; ".join(failures))
    return {"deviation": max(max(quantities.values()) for quantities in found.values())}


def where_it_can(
    figures: Callable[[Any, Program, Settings], dict[str, Any]],
    entry: Entry,
    workload: Workload,
    settings: Settings,
) -> dict[str, Any]:
    """Figures of an update, with the device and versions; or why its library cannot do it."""
    try:
        module = importlib.import_module(f"peers.with_{entry.peer}")
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        return {"missing": f"{error.name} is not installed"}
    # Bfloat16 is no faster for it, and the default of float32 is to be the same in all libraries.
    with jax.default_matmul_precision("tensorfloat32" if entry.precision == "float32" else None):
        try:
            program = module.program(workload, entry.rule, entry.precision)
        except CannotError as error:
            return {"cannot": str(error)}
    return {**figures(entry, program, settings), **module.about()}


def times(entry: Entry, program: Program, settings: Settings) -> dict[str, Any]:
    """Times and memory of an update."""
    events: list[dict] = []
    repeats, seconds = (2, 0.0) if settings.tiny else (settings.repeats, settings.seconds)
    measure({entry.rule: program}, repeats, seconds, events.append)
    row = events[-1]
    memory = jax.local_devices()[0].memory_stats() if entry.peer == "sltt_jax" else None
    median = statistics.median(row["seconds"])
    mib = lambda n: n and round(n / 2**20, 2)
    return {
        "ms": round(1e3 * median, 4),
        "ms_least": round(1e3 * min(row["seconds"]), 4),
        "ms_most": round(1e3 * max(row["seconds"]), 4),
        "updates": len(row["seconds"]),
        "tflops": row.get("flops") and round(row["flops"] / median / 1e12, 4),
        "temp_mib": mib(row.get("temp_bytes")),
        "total_mib": mib(row.get("total_bytes")),
        "peak_mib": mib(program.peak_memory and program.peak_memory(program.update)),
        # Of the process so far, with what the compiler tried algorithms on.
        "process_peak_mib": mib(memory and memory.get("peak_bytes_in_use")),
        "compile_seconds": row.get("compile_seconds") and round(row["compile_seconds"], 2),
        "loss": row["loss"],
    }


def launches(entry: Entry, program: Program, settings: Settings) -> dict[str, Any]:
    """Launches of an update and their times."""
    del entry, settings
    program.update()
    return profile(program.update)


if __name__ == "__main__":
    sys.exit(main())
