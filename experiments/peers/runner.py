"""Starts the process that measures a peer, and reads what it prints."""

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from peers.protocol import CORES

EXPERIMENTS = Path(__file__).parents[1]


class Job(NamedTuple):
    """One process: a peer on a workload, in one precision and round."""

    round: int
    workload: str
    precision: str
    peer: str


def run_process(
    job: Job,
    rules: list[str],
    *,
    python: str,
    repeats: int,
    seconds: float,
    limit: float,
    cache: str,
    show: Callable[[str | None], None],
) -> dict:
    """Runs one process to its end, or until it is silent for too long.

    Args:
      job: what it measures.
      rules: under which; one alone if `repeats` is 0.
      python: the interpreter.
      repeats: updates of each rule that are timed, at least; 0 takes the peak of the memory instead.
      seconds: of each that are timed, at least.
      limit: seconds that it may be silent.
      cache: a folder for the compiled programs of the first round.
      show: is told the rule that it has come to.

    Returns:
      "rows": by rule the figures, or why the peer "cannot"; "about": device and versions; "missing": a
      package, or "silent": the rule that was given up, if that is how it ended.

    Raises:
      ChildProcessError: the process failed.
    """
    command = [
        python, "-m", "peers.process", job.peer, job.workload, job.precision, str(repeats), str(seconds),
        *rules,
    ]  # fmt: skip
    found: dict = {"rows": {}}
    at, killed = None, threading.Event()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, env=_environment(job, cache), stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None

        def give_up():
            killed.set()
            process.kill()

        timer = threading.Timer(limit, give_up)
        timer.start()
        try:
            for line in process.stdout:
                timer.cancel()
                event = json.loads(line)
                at = event.get("rule", at)
                show(at)
                if {"seconds", "peak_bytes", "cannot"} & event.keys():
                    found["rows"][at] = event
                else:
                    found |= {k: v for k, v in event.items() if k in ("about", "missing")}
                timer = threading.Timer(limit, give_up)
                timer.start()
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
        status = process.wait()
        if killed.is_set():
            return found | {"silent": at}
        if status:
            errors.seek(0)
            raise ChildProcessError(
                f"{' '.join(command)} failed with status {status}:\n{errors.read()[-2000:]}"
            )
    return found


def _environment(job, cache):
    path = os.pathsep.join([str(EXPERIMENTS), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": path}
    if job.peer == "sltt_jax_devices":
        environment["JAX_NUM_CPU_DEVICES"] = str(CORES)
    if job.round == 0:  # so that what was timed once need not be compiled again for its memory
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
    return environment
