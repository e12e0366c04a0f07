"""Memory of one training update against the number of time steps, from the compiled program, without running
it.

    python experiments/cost.py digits --T 1 2 4 8 16 32 64

takes about a minute on two cores. Writes cost.json (bytes, operations, seconds to compile) and memory.png.
"""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Literal, get_args

import jax
import tyro
from configs import PRESETS
from plots import plot_memory
from tqdm import tqdm
from train import Run, build, fail, write_json

from sltt_jax.analysis import flops, temp_bytes

RuleName = Literal["bptt", "tbptt(4)", "sltt(chunk=4)", "sltt", "sltt_k(1)"]
RULES: dict[RuleName, dict] = {
    "bptt": {"rule": "bptt"},
    "tbptt(4)": {"rule": "tbptt", "window": 4},
    "sltt(chunk=4)": {"rule": "sltt", "chunk": 4},
    "sltt": {"rule": "sltt"},
    "sltt_k(1)": {"rule": "sltt_k", "k": 1},
}


@dataclasses.dataclass(frozen=True)
class Costs:
    """What is compiled.

    Attributes:
      preset: network, batch size, loss and optimizer.
      rules: which of the rules below.
      T: numbers of time steps; rules that need more are left out.
      batch_size: samples an update; of the preset by default.
      workdir: directory of what is written.
    """

    preset: tyro.conf.Positional[str] = "digits"
    rules: tuple[RuleName, ...] = get_args(RuleName)
    T: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    batch_size: int | None = None
    workdir: Path = Path("runs/cost")

    def __post_init__(self):
        if self.preset not in PRESETS:
            raise ValueError(f"unknown preset {self.preset!r}; there are {', '.join(PRESETS)}")
        if not self.T or min(self.T) < 1:
            raise ValueError(f"T must be numbers >= 1, got {self.T}")


def cost(run: Run) -> dict:
    """Bytes, operations and seconds to compile of the update of a run."""
    experiment = build(run)
    key = jax.random.key(run.seed)
    state = jax.eval_shape(experiment.initial_state, key)
    began = time.perf_counter()
    traced = jax.jit(experiment.update(), donate_argnums=0).trace(state, experiment.source.batch, key)
    compiled = traced.lower().compile()
    return {
        "T": run.T,
        "temp_bytes": temp_bytes(compiled),
        "flops": flops(traced, backward_share=run.k / run.T if run.rule == "sltt_k" else 1.0),
        "compile_seconds": time.perf_counter() - began,
    }


def main() -> int:
    try:
        costs = tyro.cli(Costs, description=__doc__)
        costs.workdir.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        return fail(error)
    preset = PRESETS[costs.preset]()
    batch_size = costs.batch_size or preset.batch_size
    # Costs do not depend on what is in the data: made-up samples of a batch will do.
    few = {"batch_size": batch_size, "train_samples": batch_size, "test_samples": 1, "made": True}
    base = {**vars(preset), **few}
    jobs = []
    for name in costs.rules:
        rule = RULES[name]
        needs = max(v for v in (1, *rule.values()) if isinstance(v, int))
        jobs += [(name, Run(**{**base, "T": T, "k": 1, **rule})) for T in costs.T if T >= needs]
    rows = {name: [] for name in costs.rules}
    for name, run in tqdm(jobs, unit="program"):
        rows[name].append(cost(run))
    write_json(costs.workdir / "cost.json", {"preset": costs.preset, "batch_size": batch_size, "rules": rows})
    plot_memory(rows, costs.workdir / "memory.png", title=f"{costs.preset}, batch {batch_size}")
    for name, points in rows.items():
        cells = (
            f"T={p['T']}: {p['temp_bytes'] / 2**20:.2f} MiB, {p['compile_seconds']:.1f} s" for p in points
        )
        print(f"{name:15}", *cells, sep="  ")
    print(f"files  {costs.workdir}: cost.json, memory.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
