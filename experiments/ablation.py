"""Surrogate function, tau and T: accuracy under BPTT and SLTT, and how far apart their gradients are.

    python experiments/ablation.py digits --epochs 10

takes about half an hour on two cores; one that was stopped goes on. Writes ablation.json, ablation.md and
ablation.png into the workdir, and every run. The cosine is that of the trained SLTT network, on a batch.
"""

import dataclasses
import sys

import jax
import optax
import tyro
from plots.sweeps import plot_ablation
from common.runs import Run, build, prepare_xla, presets, write_json
from common.sweeps import mean_std, sweep
from train import fail, stopped

from sltt_jax import functional, rules, training
from sltt_jax.blocks import first_step
from sltt_jax.surrogate import SURROGATES
from sltt_jax.training import Stopped


@dataclasses.dataclass(frozen=True)
class Ablation(Run):
    """What the runs have in common, and what they are compared over.

    Attributes:
      surrogates: spike functions.
      taus: membrane time constants in steps.
      steps: numbers of time steps T.
      seeds: runs of each kind.
    """

    surrogates: tuple[str, ...] = ("triangle", "sigmoid", "atan")
    taus: tuple[float, ...] = (1.1, 2.0, 5.0)
    steps: tuple[int, ...] = (2, 6)
    seeds: int = 2

    def __post_init__(self):
        super().__post_init__()
        if unknown := set(self.surrogates) - SURROGATES.keys():
            raise ValueError(f"surrogates must be of {', '.join(SURROGATES)}, got {', '.join(unknown)}")


def variants(base: Ablation) -> dict[str, dict]:
    """Settings by name."""
    return {
        f"{surrogate}-tau{tau:g}-T{T}-{rule}": {"surrogate": surrogate, "tau": tau, "T": T, "rule": rule}
        for surrogate in base.surrogates
        for tau in base.taus
        for T in base.steps
        for rule in ("bptt", "sltt")
    }


def cosine(run: Run) -> float:
    """Of SLTT's with BPTT's gradient, both on the first batch with the parameters that a run ended with."""
    experiment = build(run)
    state = jax.eval_shape(experiment.initial_state, jax.random.key(0))
    state = training.load_parts(run.workdir, {"params": state.params, "variables": state.variables})

    def f(params, variables, batch):
        inputs = experiment.source.encode(batch["x"], None)
        start = functional.at_rest(experiment.model, variables, first_step(inputs))
        apply = functional.applier(experiment.model, key=jax.random.key(0))
        a, b = (
            rule.value_and_grad(apply, experiment.step_loss)(params, start, inputs, batch["y"])[1]
            for rule in (rules.bptt(), rules.sltt())
        )
        return optax.tree.vdot(a, b) / (optax.tree.norm(a) * optax.tree.norm(b))

    return float(jax.jit(f)(state["params"], state["variables"], experiment.source.batch))


def tabulate(rows: list[dict]) -> str:
    """A Markdown table, a line for every surrogate, tau and T."""
    lines = ["| surrogate | tau | T | bptt (%) | sltt (%) | cosine |", "|---|---|---|---|---|---|"]
    for exact, row in zip(rows[::2], rows[1::2], strict=True):
        cells = (
            f"{100 * r['test_accuracy'][0]:.2f} +- {100 * r['test_accuracy'][1]:.2f}" for r in (exact, row)
        )
        lines.append(
            f"| {row['surrogate']} | {row['tau']:g} | {row['T']} | {' | '.join(cells)} "
            f"| {row['cosine'][0]:.3f} +- {row['cosine'][1]:.3f} |"
        )
    return "\n".join(lines)


def main() -> int:
    try:
        base = tyro.extras.overridable_config_cli(presets("ablation_", Ablation), description=__doc__)
        prepare_xla()
        rows, settings = [], variants(base)
        for name, summaries in sweep(base, settings, base.seeds):
            row = {**settings[name], "test_accuracy": mean_std(summaries, "test_accuracy")}
            if row["rule"] == "sltt":
                runs = (
                    dataclasses.replace(
                        base, **settings[name], seed=seed, workdir=base.workdir / name / str(seed)
                    )
                    for seed in range(base.seed, base.seed + base.seeds)
                )
                row["cosine"] = mean_std([{"cosine": cosine(run)} for run in runs], "cosine")
            rows.append(row)
    except (ValueError, OSError, FloatingPointError) as error:
        return fail(error)
    except Stopped as error:
        return stopped(error)
    write_json(base.workdir / "ablation.json", {"seeds": base.seeds, "rows": rows})
    table = tabulate(rows)
    (base.workdir / "ablation.md").write_text(table + "\n")
    title = f"{base.preset}, {base.epochs} epochs, {base.seeds} seeds"
    plot_ablation(rows, base.workdir / "ablation.png", title=title)
    print(f"{title}\n\n{table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
