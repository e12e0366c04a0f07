"""How far SLTT's gradient is from that of BPTT while a network trains (Meng et al. 2023, figure 3).

    python experiments/gradient_agreement.py digits
    python experiments/gradient_agreement.py cifar10 --reduced --made --epochs 4 --steps 6 12

The first takes about five minutes on two cores; one that was stopped goes on. A network is trained for each
number of time steps under `--rule`, all its checkpoints are kept (`--save-every` makes more of them), and the
gradients of `--rules` are compared with that of BPTT at each. Writes gradient_agreement.json, agreement.png
(cosine over training) and steps.png: at the start and the end of training, and for the largest T, the cosine
of the error signals of every step, and how much of one is left after it went back through some steps of a
layer.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import tyro
from common.configs import make_rule
from common.measures import arguments, load_weights
from plots.agreement import plot_agreement, plot_steps
from rule_names import parse_rule, show_rule
from common.runs import Experiment, Run, build, config_of, prepare_xla, presets, write_json
from common.sweeps import sweep
from tqdm import tqdm
from train import fail, stopped

from sltt_jax import functional, rules, training
from sltt_jax.analysis import advice, agreement, cut_share, horizon, lag_norms, report
from sltt_jax.analysis.recording import layer_error_signals, layer_temporal_factors
from sltt_jax.training import Stopped

ALL = 10**6  # checkpoints


@dataclasses.dataclass(frozen=True)
class Tracking(Run):
    """What is trained, and what is compared.

    Attributes:
      rules: whose gradients are compared with that of bptt: sltt, sltt_k:<k>, tbptt:<window>. At numbers of
        steps below its k or window a rule is left out.
      steps: numbers of time steps T.
      batches: of the training data, on which gradients are compared; the same at every checkpoint.
    """

    rules: tuple[str, ...] = ("sltt",)
    steps: tuple[int, ...] = (2, 6, 12)
    batches: int = 4

    def __post_init__(self):
        super().__post_init__()
        if not self.rules or any(parse_rule(name)["rule"] == "bptt" for name in self.rules):
            raise ValueError(f"rules must be others than bptt, got {' '.join(self.rules) or 'none'}")
        if not self.steps or min(self.steps) < 2:
            raise ValueError(f"steps must be numbers >= 2, got {self.steps}: all rules agree at one")
        if self.batches < 1:
            raise ValueError(f"batches must be >= 1, got {self.batches}")


def compared_rules(run: Run, names: tuple[str, ...]) -> dict[str, rules.Rule]:
    """The rules by name, without those that need more steps than there are."""
    found = {}
    for name in names:
        settings = parse_rule(name)
        if max(settings.get(key, 1) for key in ("k", "window")) <= run.T:
            found[show_rule(name)] = make_rule(dataclasses.replace(run, **settings))
    return found


def checkpoints(run: Run, experiment: Experiment) -> list[tuple[float, Path]]:
    """All checkpoints of a run, each with the epochs that were trained until then."""
    folder, steps = run.workdir / training.CHECKPOINTS, experiment.source.train.steps_per_epoch
    found = []
    for number in sorted(int(path.name) for path in folder.iterdir()):
        epochs, updates = divmod(number, steps + 1)  # as the training loop numbers them
        found.append((epochs + updates / steps, folder / str(number)))
    return found


def track(run: Run, names: tuple[str, ...], batches: int, done: set[float]) -> Iterator[dict]:
    """Agreement of each rule with BPTT at every checkpoint of a run that is not yet done, averaged."""
    experiment = build(dataclasses.replace(run, devices=1))
    key = jax.random.key(run.seed)
    compared = compared_rules(run, names)
    network = functional.applier(experiment.model, key=key)

    @jax.jit
    def measure(weights, batch, key):
        args = arguments(experiment, weights, batch)
        return agreement(compared, network, experiment.step_loss)(*args, key)

    data = [next(experiment.source.train) for _ in range(batches)]
    for epoch, folder in tqdm(checkpoints(run, experiment), desc=f"T={run.T}", unit="checkpoint"):
        if epoch not in done:
            weights = load_weights(experiment, folder)
            reports = [measure(weights, batch, jax.random.fold_in(key, i)) for i, batch in enumerate(data)]
            means = jax.tree.map(lambda *values: number(np.mean(values)), *jax.device_get(reports))
            yield {
                "T": run.T,
                "epoch": epoch,
                "rules": {
                    name: {
                        "overall": mean.overall._asdict(),
                        "layers": {layer: part._asdict() for layer, part in mean.layers.items()},
                    }
                    for name, mean in means.items()
                },
            }


def look_closer(run: Run) -> dict[str, dict]:
    """By layer, at the start and the end of a run: SLTT's error signals at each step, and the temporal part.

    Returns:
      For "start" and "end" the cosine of the error signals with BPTT's at each step, `[T]`, and the spectral
      norm and the mean of `du[t+k]/du[t]` over k = 1..T-1, `[T-1]`, of every LIF layer.
    """
    experiment = build(dataclasses.replace(run, devices=1))
    key = jax.random.key(run.seed)
    model, step_loss = experiment.model, experiment.step_loss

    @jax.jit
    def measure(weights, batch):
        args = arguments(experiment, weights, batch)
        spatial, exact = (
            layer_error_signals(model, rule, step_loss, key=key)(*args)
            for rule in (rules.sltt(), rules.bptt())
        )
        factors = layer_temporal_factors(model, *args[:3], train=True, key=key)
        cosines = {name: part.cosine for name, part in jax.vmap(report)(spatial, exact).parameters.items()}
        return {"cosine": cosines, "lags": {name: lag_norms(f)._asdict() for name, f in factors.items()}}

    batch, found = next(experiment.source.train), checkpoints(run, experiment)
    ends = {"start": found[0][1], "end": found[-1][1]}
    measured = {
        name: jax.device_get(measure(load_weights(experiment, folder), batch))
        for name, folder in ends.items()
    }
    return jax.tree.map(lambda values: [number(v) for v in values], measured)


def number(value) -> float | None:
    """For JSON, which has no NaN: where BPTT's gradient is 0 nothing agrees with it."""
    return float(value) if math.isfinite(value) else None


def tabulate(rows: list[dict]) -> str:
    """A Markdown table, a line for every T and rule."""
    lines = ["| T | rule | cosine at the start | at the end | lowest | relative error at the end |"]
    lines.append("|---" * 6 + "|")
    for T in dict.fromkeys(row["T"] for row in rows):
        of_T = sorted((row for row in rows if row["T"] == T), key=lambda row: row["epoch"])
        for name in of_T[0]["rules"]:
            line = [row["rules"][name]["overall"] for row in of_T]
            cosines = [part["cosine"] for part in line]
            cells = f"{cosines[0]:.4f} | {cosines[-1]:.4f} | {min(cosines):.4f}"
            lines.append(f"| {T} | {name} | {cells} | {line[-1]['relative_error']:.4f} |")
    return "\n".join(lines)


def main() -> int:
    try:
        base = tyro.extras.overridable_config_cli(presets("agreement_", Tracking), description=__doc__)
        prepare_xla()
        # Whatever the rows depend on, but the numbers of steps: those may be more the next time.
        same = {k: v for k, v in config_of(base).items() if k != "T"}
        same |= {"rules": list(base.rules), "batches": base.batches, "reduced": base.reduced}
        path = base.workdir / "gradient_agreement.json"
        found = json.loads(path.read_text()) if path.exists() else {"settings": same, "rows": []}
        if found["settings"] != same:
            raise ValueError(f"{path} holds results of {found['settings']}; choose another --workdir")
        rows = found["rows"]
        for T in base.steps:
            name = f"T{T}"
            list(sweep(base, {name: {"T": T, "keep": ALL}}, 1))
            run = dataclasses.replace(base, T=T, workdir=base.workdir / name / str(base.seed))
            done = {row["epoch"] for row in rows if row["T"] == T}
            for row in track(run, base.rules, base.batches, done):
                rows.append(row)
                write_json(path, found)
        rows = [row for row in rows if row["T"] in base.steps]
        T = max(base.steps)
        run = dataclasses.replace(base, T=T, workdir=base.workdir / f"T{T}" / str(base.seed))
        found["ends"] = {"T": T, **look_closer(run)}
        write_json(path, found)
    except (ValueError, OSError, FloatingPointError) as error:
        return fail(error)
    except Stopped as error:
        return stopped(error)
    title = f"{base.preset}, tau={base.tau:g}, trained under {base.rule}"
    plot_agreement(rows, base.workdir / "agreement.png", title=title)
    plot_steps(found["ends"], base.workdir / "steps.png", tau=base.tau, title=f"{title}, T={T}")
    table = tabulate(rows)
    (base.workdir / "gradient_agreement.md").write_text(table + "\n")
    print(f"\n{title}\n\n{table}\n\na membrane fades to 0.1 % in {horizon(base.tau):.1f} steps")
    for T in base.steps:
        print(advice(base.tau, T) or f"T={T}: SLTT cuts at most {100 * cut_share(base.tau, T):.0f} % of it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
