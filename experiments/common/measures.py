"""What is measured of a network on one batch of its run."""

from typing import Any, NamedTuple

import jax
from common.runs import Experiment

from sltt_jax import functional, training
from sltt_jax.analysis.activity import Activity, activity, problems
from sltt_jax.blocks import first_step

PyTree = Any


class Weights(NamedTuple):
    """Parameters and batch statistics of a network."""

    params: PyTree
    variables: PyTree


def load_weights(experiment: Experiment, folder) -> Weights:
    """Those of a run's last checkpoint, or of one checkpoint.

    Raises:
      FileNotFoundError, ValueError: as `training.load_parts`.
    """
    state = jax.eval_shape(experiment.initial_state, jax.random.key(0))
    like = {"params": state.params, "variables": state.variables}
    return Weights(**training.load_parts(folder, like))


def arguments(experiment: Experiment, weights: Weights, batch: PyTree) -> tuple[PyTree, ...]:
    """Parameters, state at rest, inputs and labels: what a rule takes. Nothing in them is augmented."""
    inputs = experiment.source.encode(batch["x"], None)
    start = functional.at_rest(experiment.model, weights.variables, first_step(inputs))
    return weights.params, start, inputs, batch["y"]


def measure_activity(experiment: Experiment, weights: Weights, batch: PyTree, *, train: bool) -> Activity:
    """What the neurons do on a batch, with the statistics of the batch or the running ones."""

    @jax.jit
    def measure(weights, batch, key):
        params, start, inputs, _ = arguments(experiment, weights, batch)
        return activity(experiment.model, params, start, inputs, train=train, key=key)

    return jax.device_get(measure(weights, batch, jax.random.key(experiment.run.seed)))


def initial_problems(experiment: Experiment, state: training.TrainState) -> list[str]:
    """What is wrong with the activity of a network as it starts, in plain words."""
    weights = Weights(state.params, state.variables)
    return problems(measure_activity(experiment, weights, experiment.source.batch, train=True))
