"""Measurements of a network on one batch of its run."""

import jax
from common.runs import Experiment, Learned, Run, build

from sltt_jax import functional, parse_rule
from sltt_jax.analysis import agreement
from sltt_jax.analysis.activity import Activity, activity, problems
from sltt_jax.blocks import PyTree, first_step


def arguments(experiment: Experiment, learned: Learned, batch: PyTree) -> tuple[PyTree, ...]:
    """Parameters, state at rest, inputs and targets: what a rule takes. Nothing in them is augmented."""
    inputs = experiment.data.encode(batch["x"], None)
    start = functional.at_rest(experiment.model, learned.variables, first_step(inputs))
    return learned.params, start, inputs, experiment.data.encode_target(batch["y"])


def measure_activity(experiment: Experiment, learned: Learned, batch: PyTree, *, train: bool) -> Activity:
    """Measures what the neurons do on a batch, with the statistics of the batch or the running ones."""

    @jax.jit
    def measure(learned, batch, key):
        params, start, inputs, _ = arguments(experiment, learned, batch)
        return activity(experiment.model, params, start, inputs, train=train, key=key)

    return jax.device_get(measure(learned, batch, jax.random.key(experiment.run.seed)))


def initial_problems(experiment: Experiment, learned: Learned) -> list[str]:
    """Says in plain words what is wrong with the activity of a network as it starts."""
    return problems(measure_activity(experiment, learned, experiment.data.batch, train=True))


def cosine_with_bptt(run: Run) -> float:
    """Cosine of the gradient of a run's rule with BPTT's, on a batch, with what the run has learnt.

    That of `sltt_k` is of one draw of its steps, by the seed of the run.
    """
    experiment, key = build(run), jax.random.key(run.seed)
    network = functional.applier(experiment.model, key=jax.random.key(0))
    compare = agreement({"own": parse_rule(run.rule)}, network, experiment.step_loss)
    measure = jax.jit(lambda *given: compare(*arguments(experiment, *given), key)["own"].overall.cosine)
    return float(measure(experiment.load(run.workdir), experiment.data.batch))
