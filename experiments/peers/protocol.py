"""Programs that peers hand over to be measured, and the measurement."""

import ctypes
import gc
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

# An update that takes longer than this is done once only, after the one that warms up.
SLOW_SECONDS = 30.0
MOST_REPEATS = 200


def peak_memory(run: Callable[[], object]) -> int | None:
    """Bytes by which the resident memory of this process grows at most in `run`; None but on Linux."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not os.access(reset, os.W_OK):
        return None

    def kilobytes(name):
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free but not given back would hide growth
    reset.write_text("5")
    before = kilobytes("VmRSS")
    run()
    return 1024 * (kilobytes("VmHWM") - before)


class Program(NamedTuple):
    """One way to do the update of a workload.

    Attributes:
      update: does a whole update, waits for it and returns its loss; goes on from the one before.
      figures: what else is known of it: compile_seconds, temp_bytes, total_bytes, flops.
      peak_memory: as the function of that name; None where the memory is not that of the process.
    """

    update: Callable[[], float]
    figures: dict[str, float | None]
    peak_memory: Callable[[Callable[[], object]], int | None] | None = peak_memory


class CannotError(Exception):
    """The peer cannot do the workload, for the reason given."""


def measure(programs: dict[str, Program], repeats: int, seconds: float, say: Callable[[dict], None]):
    """Times all programs in turns.

    Args:
      programs: by rule.
      repeats: updates of each that are timed, at least.
      seconds: more updates are timed for about so long.
      say: is given a dict for every event, the last of each rule with all its figures.

    Raises:
      FloatingPointError: a loss is not finite.
    """
    if not programs:
        return
    rows, counts = {}, {}
    for rule, program in programs.items():
        loss = program.update()
        _, taken, _ = _timed(program)
        say({"rule": rule, "warm": True})
        if taken > SLOW_SECONDS:
            counts[rule] = 1
        else:
            counts[rule] = max(repeats, min(math.ceil(seconds / taken), MOST_REPEATS))
        rows[rule] = {"rule": rule, **program.figures, "loss": loss, "seconds": [], "cpu_seconds": []}
    for i in range(max(counts.values())):
        for rule, program in programs.items():
            if i < counts[rule]:
                loss, seconds, cpu_seconds = _timed(program)
                if not math.isfinite(loss):
                    raise FloatingPointError(f"{rule}: the loss of update {i + 3} is {loss}")
                rows[rule]["seconds"].append(seconds)
                rows[rule]["cpu_seconds"].append(cpu_seconds)
                say(rows[rule] if i == counts[rule] - 1 else {"rule": rule, "update": i})


def _timed(program):
    began, cpu = time.perf_counter(), time.process_time()
    loss = program.update()
    return loss, time.perf_counter() - began, time.process_time() - cpu
