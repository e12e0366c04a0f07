"""Memory of one training update against the number of time steps, from the compiled program, without running
it.

    python experiments/cost.py digits --T 1 2 4 8 16 32 64

takes about a minute on two cores. Writes cost.json and memory.png into the workdir.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import tyro
from configs import DESCRIPTIONS, PRESETS, Config, make_model, make_rule
from plots import plot_memory
from tqdm import tqdm
from train import fail, load, write_json

from sltt_jax import losses, training
from sltt_jax.analysis import flops, temp_bytes

RULES = {
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
      T: numbers of time steps; rules that need more are left out.
      batch_size: samples an update; of the preset by default.
      workdir: directory of what is written.
    """

    preset: tyro.conf.Positional[str] = "digits"
    T: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    batch_size: int | None = None
    workdir: Path = Path("runs/cost")

    def __post_init__(self):
        if self.preset not in PRESETS:
            raise ValueError(f"unknown preset {self.preset!r}; there are {', '.join(DESCRIPTIONS)}")
        if not self.T or min(self.T) < 1:
            raise ValueError(f"T must be numbers >= 1, got {self.T}")


def cost(config: Config) -> dict:
    """Bytes and operations of the update of a configuration."""
    arrays = load(config)
    batch = {"x": arrays.train_x[: config.batch_size], "y": arrays.train_y[: config.batch_size]}
    model = make_model(config, arrays.classes)
    optimizer = training.make_optimizer(config.optimizer, config.lr, weight_decay=config.weight_decay)
    step_loss = losses.classification(mse_weight=config.mse_weight, mse_target=config.mse_target)
    key = jax.random.key(config.seed)
    x = jax.numpy.asarray(batch["x"])
    state = jax.eval_shape(lambda: training.init_state(model, optimizer, key, x))
    update = training.make_update(model, make_rule(config), step_loss, optimizer, training.repeat(config.T))
    traced = jax.jit(update, donate_argnums=0).trace(state, batch, key)
    return {
        "T": config.T,
        "temp_bytes": temp_bytes(traced.lower().compile()),
        "flops": flops(traced, backward_share=config.k / config.T if config.rule == "sltt_k" else 1.0),
    }


def main() -> int:
    try:
        costs = tyro.cli(Costs, description=__doc__)
        costs.workdir.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        return fail(error)
    preset = PRESETS[costs.preset]
    base = dataclasses.replace(preset, batch_size=costs.batch_size or preset.batch_size)
    jobs = []
    for name, rule in RULES.items():
        needs = max(v for v in (1, *rule.values()) if isinstance(v, int))
        jobs += [(name, dataclasses.replace(base, **{"T": T, "k": 1, **rule})) for T in costs.T if T >= needs]
    rows = {name: [] for name in RULES}
    for name, config in tqdm(jobs, unit="program"):
        rows[name].append(cost(config))
    write_json(
        costs.workdir / "cost.json", {"preset": costs.preset, "batch_size": base.batch_size, "rules": rows}
    )
    plot_memory(rows, costs.workdir / "memory.png", title=f"{costs.preset}, batch {base.batch_size}")
    for name, points in rows.items():
        print(f"{name:15}", *(f"T={p['T']}: {p['temp_bytes'] / 2**20:.2f} MiB" for p in points), sep="  ")
    print(f"files  {costs.workdir}: cost.json, memory.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
