"""One training update and one evaluation step, as pure functions to be compiled once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from sltt_jax import functional
from sltt_jax.blocks import first_step, run
from sltt_jax.layers import FIRING_RATE, MEMBRANE
from sltt_jax.rules import Rule, StepLoss
from sltt_jax.training.encoders import Encoder

PyTree = Any


class TrainState(NamedTuple):
    """All that training carries from update to update.

    Attributes:
      step: updates done, int32 scalar.
      params: parameters.
      variables: the network's other collections (batch statistics); membranes start anew at every update.
      opt_state: of the optimizer.
    """

    step: jax.Array
    params: PyTree
    variables: PyTree
    opt_state: optax.OptState


class Metrics(NamedTuple):
    """Of one update, scalars: mean loss, share of right answers, and the norm of the gradient."""

    loss: jax.Array
    accuracy: jax.Array
    grad_norm: jax.Array


class Evaluation(NamedTuple):
    """Sums over the samples of a batch that count.

    Attributes:
      samples: how many count, scalar.
      correct: right answers from the sum of the outputs of the first t steps, `[T]`.
      loss: of the samples, averaged over time, scalar.
      firing_rates: of the samples, for every LIF layer (keyed by its path) and step, `[T]` each.
    """

    samples: jax.Array
    correct: jax.Array
    loss: jax.Array
    firing_rates: dict[str, jax.Array]


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    encode: Encoder,
    key: jax.Array,
    x: jax.Array,
) -> TrainState:
    """A fresh training state; of the inputs `x` of a batch only shape and dtype matter."""
    params, variables = functional.init(model, key, first_step(encode(x, None)))
    variables.pop(MEMBRANE, None)
    return TrainState(jnp.zeros((), jnp.int32), params, variables, optimizer.init(params))


def make_update(
    model: nn.Module,
    rule: Rule,
    step_loss: StepLoss,
    optimizer: optax.GradientTransformation,
    encode: Encoder,
) -> Callable[[TrainState, PyTree, jax.Array], tuple[TrainState, Metrics]]:
    """Builds `update(state, {"x": [B, ...], "y": [B]}, key) -> (state, Metrics)`.

    Augmentation, dropout masks and the steps of SLTT-K are drawn from `key` and the number of the update, so
    `key` may be the same for a whole run.
    """

    def update(state: TrainState, batch: PyTree, key: jax.Array):
        data_key, dropout_key, rule_key = jax.random.split(jax.random.fold_in(key, state.step), 3)
        inputs = encode(batch["x"], data_key)
        apply = functional.applier(model, train=True, key=dropout_key)
        start = functional.at_rest(model, state.variables, first_step(inputs))
        (loss, aux), grads = rule.value_and_grad(apply, step_loss)(
            state.params, start, inputs, batch["y"], rule_key
        )
        changes, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, changes)
        variables = {name: aux.state[name] for name in state.variables}
        accuracy = jnp.mean(aux.outputs.argmax(-1) == batch["y"])
        metrics = Metrics(loss, accuracy, optax.tree.norm(grads))
        return TrainState(state.step + 1, params, variables, opt_state), metrics

    return update


def make_evaluate(
    model: nn.Module, step_loss: StepLoss, encode: Encoder
) -> Callable[[PyTree, PyTree, PyTree], Evaluation]:
    """Builds `evaluate(params, variables, {"x": [B, ...], "y": [B], "mask": [B]}) -> Evaluation`."""
    apply = functional.applier(model, train=False, record=(FIRING_RATE,))
    loss_of_one = lambda o, y: step_loss(o[None], y[None])

    def evaluate(params: PyTree, variables: PyTree, batch: PyTree) -> Evaluation:
        inputs, y, mask = encode(batch["x"], None), batch["y"], batch["mask"]
        start = functional.at_rest(model, variables, first_step(inputs))
        (outputs, recorded), _ = run(apply, params, start, inputs)
        losses = jax.vmap(jax.vmap(loss_of_one), (0, None))(outputs, y)
        right = jnp.cumsum(outputs, axis=0).argmax(-1) == y
        rates = jax.tree_util.tree_leaves_with_path(recorded[FIRING_RATE])
        return Evaluation(
            samples=mask.sum(),
            correct=right @ mask,
            loss=losses.mean(0) @ mask,
            firing_rates={"/".join(k.key for k in path[:-1]): rate @ mask for path, rate in rates},
        )

    return evaluate
