"""The paper's claims on memory and time, held against compiled updates of its networks at its batch sizes.

    python experiments/paper_claims.py

takes about ten minutes on two cores. For the memory nothing is run, so that batches of any size need not fit
into that of the machine. SLTT-K's time is measured on a batch that two cores can manage. Writes
paper_claims.json and paper_claims.md.
"""

import dataclasses
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

import jax
from common.command import check_numbers, command, markdown_table, write_json
from common.programs import trace_update
from common.runs import Run
from tqdm import tqdm

from sltt_jax.analysis import time_update
from sltt_jax.cpu import tune_xla


class Claim(NamedTuple):
    """Memory under SLTT over that under BPTT (Meng et al. 2023, table 1), and what it is to be below here."""

    preset: str
    paper: float
    goal: float


MEMORY = (
    Claim("cifar10", 1.09 / 3.00, 0.25),
    Claim("dvs_cifar10", 1.07 / 3.70, 1.07 / 3.70),
    Claim("dvs_gesture", 1.07 / 5.82, 1.07 / 5.82),
    Claim("imagenet_stage2", 8.47 / 28.41, 8.47 / 28.41),
)
TIME_PRESET = "imagenet_stage2"
TIME_RULES = "bptt", "sltt", "sltt_k(2)", "sltt_k(1)"
PAPER_TIMES = {"bptt": 73.8, "sltt": 66.9, "sltt_k(1)": 32.03}  # hours


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the check.

    Attributes:
      memory: presets whose memory is compared.
      time: rounds of timed updates, one of every rule; 0 leaves the time out.
      time_batch: samples of those.
      width: multiplies the channels of the networks, to try this script out.
      workdir: directory of what is written.
    """

    memory: tuple[str, ...] = tuple(claim.preset for claim in MEMORY)
    time: int = 5
    time_batch: int = 2
    width: float = 1.0
    workdir: Path = Path("runs/paper_claims")

    def __post_init__(self):
        known = [claim.preset for claim in MEMORY]
        if unknown := [name for name in self.memory if name not in known]:
            raise ValueError(f"memory must be of {', '.join(known)}, got {', '.join(unknown)}")
        check_numbers(self, "time", least=0)
        check_numbers(self, "time_batch")
        check_numbers(self, "width", least=1 / 64, most=64)

    def run(self, preset: str, rule: str) -> Run:
        """The recipe of a preset under a rule."""
        return Run.of(preset, width=self.width, rule=rule)


@command(Settings, __doc__, xla=tune_xla)
def main(settings: Settings):
    settings.workdir.mkdir(parents=True, exist_ok=True)
    path = settings.workdir / "paper_claims.json"
    found: dict[str, list[dict]] = {"memory": [], "time": []}
    for claim in tqdm([c for c in MEMORY if c.preset in settings.memory], unit="network"):
        found["memory"].append(memory(settings, claim))
        write_json(path, found)
    parts = [f"Memory of one update:\n\n{tabulate_memory(found['memory'])}"]
    if settings.time:
        found["time"] = times(settings)
        write_json(path, found)
        run = settings.run(TIME_PRESET, "bptt")
        title = f"{run.model}, T={run.T}, batch {settings.time_batch}, {jax.devices()[0].device_kind}"
        parts.append(f"{title}, over bptt:\n\n{tabulate_times(found['time'])}")
    text = "\n\n".join(parts)
    (settings.workdir / "paper_claims.md").write_text(text + "\n")
    print(f"\n{text}")


def memory(settings: Settings, claim: Claim) -> dict:
    """Bytes of one update of a recipe under BPTT and SLTT, at its own batch size."""
    row = {**claim._asdict(), "ratio": 0.0}
    for rule in ("bptt", "sltt"):
        run = settings.run(claim.preset, rule)
        _, cost = trace_update(run, run.batch_size).cost()
        row |= {"model": run.model, "T": run.T, "batch": run.batch_size}
        row[rule] = {"total_bytes": cost.total_bytes, "temp_bytes": cost.temp_bytes,
                     "compile_seconds": cost.compile_seconds}  # fmt: skip
    row["ratio"] = row["sltt"]["total_bytes"] / row["bptt"]["total_bytes"]
    return row


def times(settings: Settings) -> list[dict]:
    """Operations and seconds of an update under every rule, and how few operations SLTT-K could do with."""
    programs = {
        rule: trace_update(settings.run(TIME_PRESET, rule), settings.time_batch, real=True)
        for rule in TIME_RULES
    }
    costs = {rule: program.cost() for rule, program in programs.items()}
    seconds = {rule: [] for rule in TIME_RULES}
    # Round robin, so that whatever else the machine does falls on all alike.
    for _ in range(settings.time):
        for rule, (compiled, _) in costs.items():
            program = programs[rule]
            seconds[rule] += time_update(compiled, program.state, program.batch, repeats=1).each
    spatial = costs["sltt"][1]
    rows = []
    for rule, (_, cost) in costs.items():
        share = programs[rule].backward_share
        rows.append(
            {
                "rule": rule,
                "flops": cost.flops,
                # T forward passes and K backward passes of SLTT.
                "bound": spatial.forward_flops + share * spatial.backward_flops,
                "seconds": statistics.median(seconds[rule]),
                "paper_hours": PAPER_TIMES.get(rule),
            }
        )
    return rows


def tabulate_memory(rows: list[dict]) -> str:
    """Writes a Markdown table, a line for every network."""
    header = "network", "T", "batch", "bptt (GB)", "sltt (GB)", "ratio", "goal", "paper"
    lines = (
        [
            row["model"],
            str(row["T"]),
            str(row["batch"]),
            *(f"{row[rule]['total_bytes'] / 1e9:.3f}" for rule in ("bptt", "sltt")),
            *(f"{row[name]:.3f}" for name in ("ratio", "goal", "paper")),
        ]
        for row in rows
    )
    return markdown_table(header, lines)


def tabulate_times(rows: list[dict]) -> str:
    """Writes a Markdown table, a line for every rule; everything but the first number is over bptt."""
    header = "rule", "s / update", "time", "GFLOP", "its bound", "paper's time"
    exact, lines = rows[0], []
    for row in rows:
        paper = "" if row["paper_hours"] is None else f"{row['paper_hours'] / exact['paper_hours']:.3f}"
        ratios = (row[a] / exact[b] for a, b in (("seconds",) * 2, ("flops",) * 2, ("bound", "flops")))
        lines.append([row["rule"], f"{row['seconds']:.3f}", *(f"{ratio:.3f}" for ratio in ratios), paper])
    return markdown_table(header, lines)


if __name__ == "__main__":
    sys.exit(main())
