"""Whole training updates of this library, and of what one would use in its place, on the same machine.

    python experiments/benchmark.py

takes hours on two cores. The workloads, from one layer to ResNet-18, are in peers/workloads.py, and
every peer has a file beside it that says what it cannot do alike. Writes benchmark.json, benchmark.md (all
figures), benchmark.png and chunk.png (time and memory against `sltt(chunk)`). A run that was stopped goes on.

Every peer runs in a process of its own, on all cores: compiling is timed apart, each program runs twice
untimed, and then all programs of the process take turns; the median counts. With `--rounds` all processes
take turns as well. "sltt_jax_devices" is this library with the batch shared by all devices; a CPU is then one
simulated device for every core.

Peers need their packages, `pip install -e ".[peers]"`, or an interpreter that has them:

    python experiments/benchmark.py --peer-python snntorch=venvs/snntorch/bin/python

With a GPU all of them use it, bfloat16 is PyTorch's automatic mixed precision, and these are of interest:

    python experiments/benchmark.py --workloads resnet18_batch128_T6 resnet18_batch512_T6 vgg11_T10 vgg11_T20
"""

import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import tyro
from peers.tables import report
from peers.protocol import CORES
from peers.workloads import PEER_RULES, WORKLOADS, own_rules
from plots.benchmark import plot_benchmark, plot_chunks
from common.runs import write_json
from tqdm import tqdm
from train import fail

Peer = Literal["sltt_jax", "sltt_jax_devices", "pytorch", "spikingjelly", "snntorch", "spyx", "plain_flax"]
Precision = Literal["float32", "bfloat16"]
RuleKind = Literal["bptt", "bptt(chunk)", "sltt", "sltt(chunk)", "sltt_k(1)", "sltt_k(2)"]
PACKAGES = {
    "pytorch": "torch",
    "spikingjelly": "torch spikingjelly",
    "snntorch": "torch snntorch",
    "spyx": "spyx",
}
ON_CPU = tuple(
    name for name in WORKLOADS if "batch128" not in name and "batch512" not in name and name != "vgg11_T20"
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is measured, and for how long.

    Attributes:
      workloads: the updates, see peers/workloads.py.
      peers: this library and others.
      rules: of this library; "(chunk)" stands for all chunks of the workload, under BPTT and for T too. Peers
        do "bptt" and "sltt" if these are among them.
      precisions: of convolutions and matrix products.
      repeats: updates of each program that are timed, at least.
      seconds: of each program that are timed, at least, up to 200 updates.
      rounds: processes of each peer, in turns.
      memory: take the peak memory of every program as well, in a process of its own.
      limit: seconds that a program may be silent, compiling or in an update, before it is given up.
      peer_python: interpreters that have a peer's packages, name=path.
      overwrite: measure anew what is chosen and in the workdir already.
      workdir: directory of what is written.
    """

    workloads: tuple[str, ...] = ON_CPU
    peers: tuple[Peer, ...] = get_args(Peer)
    rules: tuple[RuleKind, ...] = get_args(RuleKind)
    precisions: tuple[Precision, ...] = get_args(Precision)
    repeats: int = 7
    seconds: float = 3.0
    rounds: int = 1
    memory: bool = True
    limit: float = 600.0
    peer_python: tuple[str, ...] = ()
    overwrite: bool = False
    workdir: Path = Path("runs/benchmark")

    def __post_init__(self):
        for name in ("repeats", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("seconds", "limit"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be >= 0, got {getattr(self, name)}")
        unknown = [w for w in self.workloads if w not in WORKLOADS]
        if unknown or not self.workloads:
            raise ValueError(f"unknown workloads {unknown}; there are {', '.join(WORKLOADS)}")
        for entry in self.peer_python:
            name, _, path = entry.partition("=")
            if name not in get_args(Peer) or not Path(path).is_file():
                raise ValueError(f"peer_python takes peer=path of an interpreter, got {entry!r}")

    def python(self, peer: str) -> str:
        """The interpreter of a peer."""
        given = dict(entry.split("=", 1) for entry in self.peer_python)
        return given.get(peer, sys.executable)


@dataclasses.dataclass(frozen=True)
class Job:
    """One process: a peer on a workload, in one precision and round."""

    round: int
    workload: str
    precision: str
    peer: str

    def rules(self, settings: Settings) -> list[str]:
        if self.peer.startswith("sltt_jax"):
            return list(own_rules(WORKLOADS[self.workload], settings.rules))
        return [rule for rule in PEER_RULES if rule in settings.rules]


def jobs(settings: Settings) -> Iterator[Job]:
    """All processes, in the order in which they run."""
    for round in range(settings.rounds):
        for workload in settings.workloads:
            for precision in settings.precisions:
                for peer in settings.peers:
                    yield Job(round, workload, precision, peer)


def run_process(
    job: Job, rules: list[str], settings: Settings, cache: Path, bar: tqdm, *, memory=False
) -> dict:
    """Runs one process to its end, or until it is silent for too long.

    Returns:
      "rows": by rule the figures, or why the peer "cannot"; "about": device and versions; "missing": a
      package, or "silent": the rule that was given up, if that is how it ended.

    Raises:
      RuntimeError: the process failed.
    """
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep),
    }
    if job.peer == "sltt_jax_devices":
        environment["JAX_NUM_CPU_DEVICES"] = str(CORES)
    if job.round == 0:  # so that what was timed once need not be compiled again for its memory
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
    repeats = "0" if memory else str(settings.repeats)
    command = [
        settings.python(job.peer), "-m", "peers.process", job.peer, job.workload, job.precision,
        repeats, str(settings.seconds), *rules,
    ]  # fmt: skip
    found: dict = {"rows": {}}
    at, killed = None, threading.Event()
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None

        def give_up():
            killed.set()
            process.kill()

        timer = threading.Timer(settings.limit, give_up)
        timer.start()
        try:
            for line in process.stdout:
                timer.cancel()
                event = json.loads(line)
                at = event.get("rule", at)
                bar.set_postfix_str(f"{job.workload} {job.precision} {job.peer} {at or ''}")
                if {"seconds", "peak_bytes", "cannot"} & event.keys():
                    found["rows"][at] = event
                else:
                    found |= {k: v for k, v in event.items() if k in ("about", "missing")}
                timer = threading.Timer(settings.limit, give_up)
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
            raise RuntimeError(f"{' '.join(command)} failed with status {status}:\n{errors.read()[-2000:]}")
    return found


def measure(job: Job, rules: list[str], settings: Settings, cache: Path, bar: tqdm) -> Iterator[dict]:
    """Rows of the rules of a job; a row without figures says why."""
    row = dataclasses.asdict(job)
    rules = list(rules)
    while rules:
        found = run_process(job, rules, settings, cache, bar)
        if "missing" in found:
            yield from ({**row, "rule": rule, "missing": found["missing"]} for rule in rules)
            return
        for rule, figures in found["rows"].items():
            if settings.memory and job.round == 0 and "seconds" in figures:
                alone = run_process(job, [rule], settings, cache, bar, memory=True)
                figures |= alone["rows"].get(rule, {})
            yield {**row, **figures, "about": found.get("about", {})}
            rules.remove(rule)
        if "silent" in found:
            rule = found["silent"] or rules[0]
            if rule in rules:
                yield {**row, "rule": rule, "silent": settings.limit}
                rules.remove(rule)


def key(row: dict) -> tuple:
    """What tells a measurement from others."""
    return row["round"], row["workload"], row["precision"], row["peer"], row["rule"]


def machine() -> dict:
    """What it was measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {"cpu": models[0] if models else platform.processor(), "cores": CORES}


def main() -> int:
    try:
        settings = tyro.cli(Settings, description=__doc__)
        settings.workdir.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        return fail(error)
    path = settings.workdir / "benchmark.json"
    rows = {}
    if path.exists():
        known = json.loads(path.read_text())
        if known["machine"] != machine():
            return fail(ValueError(f"{path} is of another machine; choose another --workdir"))
        rows = {key(row): row for row in known["rows"]}
    todo = []
    for job in jobs(settings):
        wanted = {key({**dataclasses.asdict(job), "rule": rule}): rule for rule in job.rules(settings)}
        measured = lambda k: k in rows and "missing" not in rows[k]
        rules = [rule for k, rule in wanted.items() if settings.overwrite or not measured(k)]
        if rules:
            todo.append((job, rules))
    missing = {}
    with tempfile.TemporaryDirectory() as cache, tqdm(todo, unit="process") as bar:
        for job, rules in bar:
            try:
                new = list(measure(job, rules, settings, Path(cache), bar))
            except RuntimeError as error:
                return fail(error)
            rows |= {key(row): row for row in new}
            missing |= {row["peer"]: row["missing"] for row in new if "missing" in row}
            write_json(path, {"machine": machine(), "rows": [*rows.values()]})
    text = report(machine(), [*rows.values()], WORKLOADS)
    (settings.workdir / "benchmark.md").write_text(text)
    plot_benchmark([*rows.values()], WORKLOADS, settings.workdir / "benchmark.png")
    plot_chunks([*rows.values()], WORKLOADS, settings.workdir / "chunk.png")
    print(text)
    for peer, package in missing.items():
        print(
            f"{peer}: not measured, {settings.python(peer)} has no {package}. "
            f"`pip install {PACKAGES.get(peer, package)}` in an environment of its own, "
            f"then --peer-python {peer}=ENVIRONMENT/bin/python",
            file=sys.stderr,
        )
    print(f"files  {settings.workdir}: benchmark.json, benchmark.md, benchmark.png, chunk.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
