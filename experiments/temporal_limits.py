"""Where SLTT breaks: tasks whose answer depends on the past, under rules that see more or less of it.

    python experiments/temporal_limits.py --data-dir data

takes about six minutes on two cores; one that was stopped is resumed. Writes temporal_limits.json and a
picture for every task. What is asked at the last step came at the first (recall), at both (xor), or row by
row (digits); spoken digits (fsdd) come as spikes of a filter bank, and are asked for at every step.

All networks have two hidden layers of LIF neurons, by default without lateral weights, so that a membrane is
the only memory: it keeps 1 - 1/tau of itself in a step. A cue that is d steps ago reaches the answer through
it, and its gradient comes back through it, but not under SLTT, whose gradient to the weights of the cue is
exactly 0. With `--lateral` spikes also go from neuron to neuron of a layer, a step later.
"""

import dataclasses
import math
import sys
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common.command import check_numbers, command, resumed, write_json
from common.rule_flags import steps_needed
from plots.temporal import plot_delays, plot_taus
from tqdm import tqdm

from sltt_jax import Neuron, Rule, bptt, lif, lif_step, over_time, parse_rule, recurrent, run, sltt, synapse
from sltt_jax.analysis import compare, horizon
from sltt_jax.data import temporal
from sltt_jax.data.events.spoken_digits import load_fsdd

Task = Literal["recall", "xor", "digits", "fsdd"]
DELAYED = "recall", "xor"
TITLES = {
    "recall": "delayed recall: which of four cues was it?",
    "xor": "temporal XOR: do two cues differ?",
    "digits": "digits row by row",
    "fsdd": "spoken digits",
}
FSDD_STEPS = 40
EPSILON = 0.01  # what is left of a membrane after its horizon


@dataclasses.dataclass(frozen=True)
class Limits:
    """Settings: the tasks and networks that are tried.

    Attributes:
      tasks: which of them.
      rules: under which they are trained, as `--rule` spells them.
      delays: silent steps between cue and answer, of recall and xor.
      taus: membrane time constants in steps.
      seeds: networks of each kind, with samples of their own.
      updates: of Adam.
      batch_size: samples an update.
      learning_rate: of Adam.
      units: of each hidden layer.
      lateral: the hidden layers have weights from neuron to neuron.
      data_dir: directory of the data sets, for fsdd.
      workdir: directory of what is written.
    """

    tasks: tuple[Task, ...] = get_args(Task)
    rules: tuple[str, ...] = ("bptt", "tbptt(8)", "tbptt(4)", "tbptt(2)", "sltt")
    delays: tuple[int, ...] = (0, 1, 2, 4, 8, 16)
    taus: tuple[float, ...] = (2.0, 5.0, 20.0)
    seeds: int = 5
    updates: int = 500
    batch_size: int = 64
    learning_rate: float = 3e-3
    units: int = 64
    lateral: bool = False
    data_dir: Path = Path("data")
    workdir: Path = Path("runs/temporal_limits")

    def __post_init__(self):
        check_numbers(self, "seeds", "updates", "batch_size", "units", most=10**6)
        check_numbers(self, "delays", least=0, most=10**6)
        for rule in self.rules:
            parse_rule(rule)
        if not all(1 < tau < math.inf for tau in self.taus):
            raise ValueError(f"taus must be numbers > 1, got {self.taus}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a number > 0, got {self.learning_rate}")


class Samples(NamedTuple):
    """`x`: `[N, T, F]`; `y`: `[N]`; `asked`: the steps at which the answer counts, `[T]`."""

    x: jax.Array
    y: jax.Array
    asked: jax.Array


@command(Limits, __doc__)
def main(settings: Limits):
    settings.workdir.mkdir(parents=True, exist_ok=True)
    path, elsewhere = (
        settings.workdir / "temporal_limits.json",
        ("tasks", "rules", "delays", "data_dir", "workdir"),
    )
    same = {k: v for k, v in vars(settings).items() if k not in elsewhere}
    found = resumed(path, "settings", same)
    rows = found["rows"]
    done = {(row["task"], row["delay"], row["rule"]) for row in rows}
    for job in tqdm(list(jobs(settings)), unit="program"):
        if job not in done:
            rows += measure(settings, *job)
            write_json(path, found)
    for task in settings.tasks:
        plot = plot_delays if task in DELAYED else plot_taus
        title = TITLES[task] + (" (with lateral weights)" if settings.lateral else "")
        plot([r for r in rows if r["task"] == task], settings.workdir / f"{task}.png", title=title)
    for row in rows:
        mean, std = np.mean(row["accuracy"]), np.std(row["accuracy"])
        cue = f"  cue gradient {np.max(row['cue_gradient']):.1e}" if row["task"] in DELAYED else ""
        print(
            f"{row['task']:7} delay {row['delay']!s:5} tau {row['tau']:<5g} {row['rule']:9} "
            f"accuracy {mean:.3f} +- {std:.3f}  cosine {np.mean(row['cosine']):.3f}{cue}"
        )


def jobs(settings: Limits):
    """Tasks, delays and rules, less the windows that are as long as the task or longer: those are bptt."""
    for task in settings.tasks:
        for delay in settings.delays if task in DELAYED else (None,):
            T = delay + 2 if delay is not None else {"digits": 8, "fsdd": FSDD_STEPS}[task]
            for rule in settings.rules:
                if steps_needed(parse_rule(rule)) < T:
                    yield task, delay, rule


def measure(settings: Limits, task: Task, delay: int | None, rule: str) -> list[dict]:
    """Trains all taus and seeds of one task under one rule, in one compiled program; a row for every tau."""
    train, test, without_memory = zip(
        *(load(task, delay, seed, settings.data_dir) for seed in range(settings.seeds)), strict=True
    )
    stack = lambda parts: jax.tree.map(lambda *a: jnp.stack(a), *parts) if delay is not None else parts[0]
    drawn = 0 if delay is not None else None  # the samples of recall and xor differ from seed to seed
    classes = int(train[0].y.max()) + 1
    one = partial(fit, parse_rule(rule), settings, classes)
    seeds = jax.vmap(one, (drawn, drawn, None, 0))
    taus = jax.jit(jax.vmap(seeds, (None, None, 0, None)))
    keys = jax.random.split(jax.random.key(0), settings.seeds)
    results = jax.device_get(taus(stack(train), stack(test), jnp.asarray(settings.taus), keys))
    bad = [k for k, v in results.items() if not np.isfinite(v).all()]
    if bad:
        raise FloatingPointError(f"{', '.join(bad)} of {task}, delay {delay}, {rule} are not finite")
    return [
        {
            "task": task, "delay": delay, "rule": rule, "tau": tau, "T": train[0].x.shape[1],
            "horizon": horizon(tau, EPSILON), "without_memory": without_memory[0],
            **{k: v[i].tolist() for k, v in results.items()},
        }
        for i, tau in enumerate(settings.taus)
    ]  # fmt: skip


def load(task: Task, delay: int | None, seed: int, data_dir: Path) -> tuple[Samples, Samples, float]:
    """Training and test samples, and the best accuracy without memory where it is known (NaN if not)."""
    if delay is not None:
        make = {"recall": temporal.delayed_recall, "xor": temporal.temporal_xor}[task]
        parts = [make(n, delay, seed=2 * seed + i) for i, n in enumerate((2000, 500))]
    elif task == "digits":
        parts = temporal.sequential_digits()
    else:
        data = load_fsdd(data_dir / "fsdd", steps=FSDD_STEPS, cache=data_dir / "cache")
        asked = np.ones(FSDD_STEPS, bool)
        train, test = (data.train_x, data.train_y), (data.test_x, data.test_y)
        parts = [temporal.TemporalTask(x, y, asked, 10, math.nan) for x, y in (train, test)]
    train, test = (
        Samples(jnp.asarray(p.x, jnp.float32), jnp.asarray(p.y), jnp.asarray(p.asked)) for p in parts
    )
    return train, test, parts[0].without_memory


def init(key: jax.Array, x: jax.Array, units: int, classes: int, lateral: bool = False) -> list[jax.Array]:
    """Three random matrices, and two lateral ones.

    Currents of the first have a standard deviation of about 1 where input is.
    """
    keys = jax.random.split(key, 5)
    power = jnp.square(x).sum(-1)
    power = power.sum() / (power > 0).sum()
    scales = 1 / jnp.sqrt(power), 2 / math.sqrt(units), 1 / math.sqrt(units)
    scales += (1 / math.sqrt(units),) * 2 if lateral else ()
    shapes = (x.shape[-1], units), (units, units), (units, classes), (units, units), (units, units)
    return [s * jax.random.normal(k, n) for k, n, s in zip(keys, shapes, scales, strict=False)]


laterally = over_time(recurrent(lif_step))


def network(tau: jax.Array):
    """The `apply` of a rule: two layers of neurons and a readout, which answers only when it is asked."""
    neuron = Neuron(tau=tau)

    def apply(params, state, inputs, *, temporal_gradient):
        xs, asked = inputs
        product = partial(synapse, jnp.matmul, temporal_gradient=temporal_gradient)
        first, second, readout, *lateral = params
        states = []
        for i, (w, before) in enumerate(zip((first, second), state, strict=True)):
            cells, weights = (laterally, (lateral[i],)) if lateral else (lif, ())
            after, xs = cells(before, product(xs, w), *weights, neuron, temporal_gradient=temporal_gradient)
            states.append(after)
        answer = product(xs, readout) * asked[..., None]
        return (answer, asked), states

    return apply


def step_loss(output, y):
    """Cross entropy of the steps that are asked."""
    answer, asked = output
    return jnp.mean(asked * optax.softmax_cross_entropy_with_integer_labels(answer, y))


def gradient(rule: Rule, params, tau, samples: Samples):
    """The gradient of the mean loss over the steps that are asked under a rule, and the answers."""
    x, y, asked = samples
    inputs = jnp.moveaxis(x, 1, 0), jnp.broadcast_to(asked[:, None], (x.shape[1], len(x))).astype(x.dtype)
    rest = jnp.zeros((len(x), params[0].shape[1]))
    state = [(rest, rest) if len(params) > 3 else rest] * 2
    (_, aux), grads = rule.value_and_grad(network(tau), step_loss)(params, state, inputs, y)
    scale = len(asked) / asked.sum()
    return jax.tree.map(lambda g: scale * g, grads), aux.outputs[0]


def cosine(gradient, exact):
    """Cosine of two gradients; 0 if one of them is zero."""
    return jnp.nan_to_num(compare(gradient, exact).cosine)


def fit(rule: Rule, settings: Limits, classes: int, train: Samples, test: Samples, tau, key):
    """Trains one network and returns what is reported of it, as scalars."""
    init_key, key = jax.random.split(key)
    params = init(init_key, train.x, settings.units, classes, settings.lateral)
    few = train._replace(x=train.x[:256], y=train.y[:256])
    exact, grads = (gradient(r, params, tau, few)[0] for r in (bptt(), rule))
    optimizer = optax.adam(settings.learning_rate)

    def update(carry, key):
        params, opt_state = carry
        chosen = jax.random.randint(key, (settings.batch_size,), 0, len(train.x))
        grads, _ = gradient(rule, params, tau, train._replace(x=train.x[chosen], y=train.y[chosen]))
        changes, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, changes), opt_state), None

    keys = jax.random.split(key, settings.updates)
    (trained, _), _ = jax.lax.scan(update, (params, optimizer.init(params)), keys)
    _, answers = gradient(sltt(), trained, tau, test)
    first = train.x[:, 0].any(0) & ~train.x[:, -1].any(0)  # inputs of the cue alone
    return {
        "accuracy": jnp.mean(answers.argmax(-1) == test.y),
        "cosine": cosine(grads, exact),
        "cosine_first_layer": cosine(grads[0], exact[0]),
        "cue_gradient": jnp.linalg.norm(grads[0] * first[:, None]),
        "firing_rate": firing_rate(params, tau, few),
    }


def firing_rate(params, tau, samples: Samples):
    """Spikes per neuron of the first layer over the whole sample, before training."""

    def layer(params, state, xs, *, temporal_gradient):
        v, spikes = lif(state, xs @ params, Neuron(tau=tau), temporal_gradient=temporal_gradient)
        return spikes, v

    start = jnp.zeros((len(samples.x), params[0].shape[1]))
    spikes, _ = run(layer, params[0], start, jnp.moveaxis(samples.x, 1, 0))
    return spikes.sum(0).mean()


if __name__ == "__main__":
    sys.exit(main())
