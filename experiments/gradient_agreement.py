"""Distance of SLTT's gradient from that of BPTT while a network trains (Meng et al. 2023, figure 3).

    python experiments/gradient_agreement.py digits
    python experiments/gradient_agreement.py cifar10 --reduced --made --epochs 4 --steps 6 12

The first takes about two minutes on two cores; one that was stopped is resumed. A network is trained for
each number of time steps under `--rule`, all its checkpoints are kept (`--save-every` makes more of them),
and the gradients of `--rules` are compared with that of BPTT at each. Writes gradient_agreement.json,
agreement.png (cosine over training) and steps.png: at the start and the end of training, and for the largest
T, the cosine of the error signals of every step, and how much of one is left after it went back through some
steps of a layer. Of recurrent networks, whose layers have lateral weights, there is no steps.png.
"""

import dataclasses
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from common.command import check_numbers, command, markdown_table, resumed, write_json
from common.configs import RECURRENT
from common.measures import arguments
from common.rule_flags import steps_needed
from common.runs import Experiment, Run, build, presets
from common.sweeps import check_all, trained
from common.workdirs import config_of
from plots.agreement import plot_agreement, plot_steps
from tqdm import tqdm

from sltt_jax import bptt, functional, parse_rule, sltt, training
from sltt_jax.analysis import advice, agreement, cut_share, horizon, lag_norms, report
from sltt_jax.analysis.recording import layer_error_signals, layer_temporal_factors

ALL = 10**6  # checkpoints


@dataclasses.dataclass(frozen=True)
class Tracking(Run):
    """Settings of the training, and of the comparison.

    Attributes:
      rules: whose gradients are compared with that of bptt, "sltt_k(2)". At numbers of steps below its k or
        window a rule is left out; one must be left at each, and each rule at one.
      steps: numbers of time steps T.
      batches: of the training data, on which gradients are compared; the same at every checkpoint.
    """

    rules: tuple[str, ...] = ("sltt",)
    steps: tuple[int, ...] = (2, 6, 12)
    batches: int = 4

    def __post_init__(self, *flags):
        super().__post_init__(*flags)
        if any(isinstance(parse_rule(text), bptt) for text in self.rules):
            raise ValueError(f"rules must be others than bptt, got {' '.join(self.rules)}")
        check_numbers(self, "steps", least=2, most=10**6)  # at one step all rules agree
        check_numbers(self, "batches")
        needed = {text: steps_needed(parse_rule(text)) for text in self.rules}
        for text, least in needed.items():
            if least > max(self.steps, default=least):
                raise ValueError(f"rule {text} needs {least} steps, more than any of steps={self.steps}")
        for T in self.steps:
            if T < min(needed.values(), default=T):
                raise ValueError(f"none of the rules {' '.join(needed)} can be run over T={T} steps")


@command(presets("agreement_", Tracking), __doc__)
def main(base: Tracking):
    # Whatever the rows depend on, but the numbers of steps: those may be more the next time.
    same = {k: v for k, v in config_of(base).items() if k != "T"}
    same |= {name: getattr(base, name) for name in ("rules", "batches", "reduced")}
    path = base.workdir / "gradient_agreement.json"
    found = resumed(path, "settings", same)
    workdirs = {T: base.workdir / f"T{T}" / str(base.seed) for T in base.steps}
    runs = [dataclasses.replace(base, T=T, keep=ALL, workdir=workdir) for T, workdir in workdirs.items()]
    check_all(runs)
    for run in runs:
        trained(run)
        for row in track(run, done={row["epoch"] for row in found["rows"] if row["T"] == run.T}):
            found["rows"].append(row)
            write_json(path, found)
    longest = max(runs, key=lambda run: run.T)
    if base.model != RECURRENT:
        found["ends"] = {"T": longest.T, **look_closer(longest)}
        write_json(path, found)
    rows = [row for row in found["rows"] if row["T"] in base.steps]
    title, table = f"{base.preset}, tau={base.tau:g}, trained under {base.rule}", tabulate(rows)
    plot_agreement(rows, base.workdir / "agreement.png", title=title)
    if "ends" in found:
        plot_steps(found["ends"], base.workdir / "steps.png", tau=base.tau, title=f"{title}, T={longest.T}")
    (base.workdir / "gradient_agreement.md").write_text(table + "\n")
    print(f"\n{title}\n\n{table}\n\na membrane fades to 0.1 % in {horizon(base.tau):.1f} steps")
    for T in base.steps:
        print(advice(base.tau, T) or f"T={T}: SLTT cuts at most {100 * cut_share(base.tau, T):.0f} % of it")


def checkpoints(run: Run, experiment: Experiment) -> list[tuple[float, Path]]:
    """Lists all checkpoints of a run, each with the epochs that were trained until then."""
    folder, steps = run.workdir / training.CHECKPOINTS, experiment.data.train.steps_per_epoch
    found = []
    for number in training.Checkpoints(run.workdir).numbers:
        epochs, updates = divmod(number, steps + 1)  # as the training loop numbers them
        found.append((epochs + updates / steps, folder / str(number)))
    return found


def track(run: Tracking, *, done: set[float]) -> Iterator[dict]:
    """Agreement of each rule with BPTT at every checkpoint of a run that is not yet done, averaged."""
    experiment = build(dataclasses.replace(run, devices=1))
    key = jax.random.key(run.seed)
    rules = {str(rule): rule for rule in map(parse_rule, run.rules) if steps_needed(rule) <= run.T}
    network = functional.applier(experiment.model, key=key)

    @jax.jit
    def measure(learned, batch, key):
        args = arguments(experiment, learned, batch)
        return agreement(rules, network, experiment.step_loss)(*args, key)

    data = [next(experiment.data.train) for _ in range(run.batches)]
    for epoch, folder in tqdm(checkpoints(run, experiment), desc=f"T={run.T}", unit="checkpoint"):
        if epoch not in done:
            learned = experiment.load(folder)
            reports = [measure(learned, batch, jax.random.fold_in(key, i)) for i, batch in enumerate(data)]
            means = jax.tree.map(lambda *values: number(np.mean(values)), *jax.device_get(reports))
            rows = {
                name: {
                    "overall": mean.overall._asdict(),
                    "layers": {layer: part._asdict() for layer, part in mean.layers.items()},
                }
                for name, mean in means.items()
            }
            yield {"T": run.T, "epoch": epoch, "rules": rows}


def look_closer(run: Run) -> dict[str, dict]:
    """Error signals of SLTT at each step, and the temporal part, by layer, at the start and end of a run.

    Returns:
      For "start" and "end" the cosine of the error signals with BPTT's at each step, `[T]`, and the spectral
      norm and the mean of `du[t+k]/du[t]` over k = 1..T-1, `[T-1]`, of every LIF layer.
    """
    experiment = build(dataclasses.replace(run, devices=1))
    key = jax.random.key(run.seed)
    model, step_loss = experiment.model, experiment.step_loss

    @jax.jit
    def measure(learned, batch):
        args = arguments(experiment, learned, batch)
        spatial, exact = (
            layer_error_signals(model, rule, step_loss, key=key)(*args) for rule in (sltt(), bptt())
        )
        factors = layer_temporal_factors(model, *args[:3], train=True, key=key)
        cosines = {name: part.cosine for name, part in jax.vmap(report)(spatial, exact).parameters.items()}
        return {"cosine": cosines, "lags": {name: lag_norms(f)._asdict() for name, f in factors.items()}}

    batch, found = next(experiment.data.train), checkpoints(run, experiment)
    ends = {"start": found[0][1], "end": found[-1][1]}
    measured = {
        name: jax.device_get(measure(experiment.load(folder), batch)) for name, folder in ends.items()
    }
    return jax.tree.map(lambda values: [number(v) for v in values], measured)


def number(value) -> float | None:
    """A number as JSON takes it, which has no NaN: where BPTT's gradient is 0 nothing agrees with it."""
    return float(value) if math.isfinite(value) else None


def tabulate(rows: list[dict]) -> str:
    """Writes a Markdown table, a line for every T and rule."""
    header = "T", "rule", "cosine at the start", "at the end", "lowest", "relative error at the end"
    lines = []
    for T in dict.fromkeys(row["T"] for row in rows):
        of_T = sorted((row for row in rows if row["T"] == T), key=lambda row: row["epoch"])
        for name in of_T[0]["rules"]:
            line = [row["rules"][name]["overall"] for row in of_T]
            cosines = [part["cosine"] for part in line]
            numbers = cosines[0], cosines[-1], min(cosines), line[-1]["relative_error"]
            lines.append([str(T), name, *(f"{n:.4f}" for n in numbers)])
    return markdown_table(header, lines)


if __name__ == "__main__":
    sys.exit(main())
