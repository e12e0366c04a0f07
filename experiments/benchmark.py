"""Whole training updates of this library, and of what one would use in its place, on the same machine.

    python experiments/benchmark.py

takes hours on two cores. The workloads, from one layer to ResNet-18, are in peers/workloads.py, and
every peer has a file beside it that says what it cannot do alike. Writes benchmark.json, benchmark.md (all
figures), benchmark.png and chunk.png (time and memory against `sltt(chunk)`). The same command resumes one
that was stopped.

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
import platform
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from common.command import check_numbers, command, resumed, write_json
from peers.protocol import CORES
from peers.runner import Job, run_process
from peers.tables import report
from peers.workloads import ON_CPU, PEER_RULES, WORKLOADS, own_rules
from plots.benchmark import plot_benchmark, plot_chunks
from tqdm import tqdm

Peer = Literal["sltt_jax", "sltt_jax_devices", "pytorch", "spikingjelly", "snntorch", "spyx", "plain_flax"]
Precision = Literal["float32", "bfloat16"]
RuleKind = Literal["bptt", "bptt(chunk)", "sltt", "sltt(chunk)", "sltt_k(1)", "sltt_k(2)"]
PACKAGES = {
    "pytorch": "torch",
    "spikingjelly": "torch spikingjelly",
    "snntorch": "torch snntorch",
    "spyx": "spyx",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings: the updates that are measured, and for how long.

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

    workloads: tuple[str, ...] = tuple(ON_CPU)
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
        check_numbers(self, "repeats", "rounds")
        check_numbers(self, "seconds", "limit", least=0)
        unknown = [w for w in self.workloads if w not in WORKLOADS]
        if unknown:
            raise ValueError(f"unknown workloads {unknown}; there are {', '.join(WORKLOADS)}")
        for entry in self.peer_python:
            name, _, path = entry.partition("=")
            if name not in get_args(Peer) or not Path(path).is_file():
                raise ValueError(f"peer_python takes peer=path of an interpreter, got {entry!r}")

    def python(self, peer: str) -> str:
        """The interpreter of a peer."""
        given = dict(entry.split("=", 1) for entry in self.peer_python)
        return given.get(peer, sys.executable)


@command(Settings, __doc__, xla=None)
def main(settings: Settings):
    settings.workdir.mkdir(parents=True, exist_ok=True)
    path = settings.workdir / "benchmark.json"
    found = resumed(path, "machine", machine())
    rows = {key(row): row for row in found["rows"]}
    todo = list(jobs(settings, {} if settings.overwrite else rows))
    missing = {}
    with tempfile.TemporaryDirectory() as cache, tqdm(todo, unit="process") as bar:
        for job, rules in bar:
            show = lambda rule, job=job: bar.set_postfix_str(
                f"{job.workload} {job.precision} {job.peer} {rule or ''}"
            )
            new = list(measure(job, rules, settings, cache=cache, show=show))
            rows |= {key(row): row for row in new}
            missing |= {row["peer"]: row["missing"] for row in new if "missing" in row}
            write_json(path, {**found, "rows": [*rows.values()]})
    text = report(found["machine"], [*rows.values()], WORKLOADS)
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


def jobs(settings: Settings, done: dict[tuple, dict]) -> Iterator[tuple[Job, list[str]]]:
    """Yields all processes in the order in which they run, each with the rules still to be measured."""
    for round in range(settings.rounds):
        for workload in settings.workloads:
            for precision in settings.precisions:
                for peer in settings.peers:
                    job = Job(round, workload, precision, peer)
                    measured = lambda rule, job=job: "missing" not in done.get((*job, rule), {"missing": ""})
                    if rules := [rule for rule in chosen_rules(job, settings) if not measured(rule)]:
                        yield job, rules


def chosen_rules(job: Job, settings: Settings) -> list[str]:
    """The rules under which a peer is measured."""
    if job.peer.startswith("sltt_jax"):
        return list(own_rules(WORKLOADS[job.workload], settings.rules))
    return [rule for rule in PEER_RULES if rule in settings.rules]


def measure(job: Job, rules: list[str], settings: Settings, **how) -> Iterator[dict]:
    """Yields rows of the rules of a job; a row without figures says why."""
    row, rules = job._asdict(), list(rules)
    python, limit = settings.python(job.peer), settings.limit
    run = partial(run_process, job, python=python, seconds=settings.seconds, limit=limit, **how)
    while rules:
        found = run(rules, repeats=settings.repeats)
        if "missing" in found:
            yield from ({**row, "rule": rule, "missing": found["missing"]} for rule in rules)
            return
        for rule, figures in found["rows"].items():
            if settings.memory and job.round == 0 and "seconds" in figures:
                figures |= run([rule], repeats=0)["rows"].get(rule, {})
            yield {**row, **figures, "about": found.get("about", {})}
            rules.remove(rule)
        if "silent" in found:
            rule = found["silent"] or rules[0]
            if rule in rules:
                yield {**row, "rule": rule, "silent": limit}
                rules.remove(rule)


def key(row: dict) -> tuple:
    """Key that tells a measurement from others."""
    return (*(row[name] for name in Job._fields), row["rule"])


def machine() -> dict:
    """Processor and cores of this machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {"cpu": models[0] if models else platform.processor(), "cores": CORES}


if __name__ == "__main__":
    sys.exit(main())
