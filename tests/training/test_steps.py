"""One update and one evaluation."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sltt_jax import data, functional, losses, training
from sltt_jax.blocks import Repeat, run
from sltt_jax.data import encoders
from sltt_jax.models import MLP, ConvNet
from sltt_jax.neurons import Neuron
from sltt_jax.rules import Rule, sltt, sltt_k

pytestmark = pytest.mark.usefixtures("quick_compile")

LOSS = losses.classification(mse_weight=0.05)
T = 3
ENCODE = encoders.direct(T)
NEURON = Neuron(tau=1.5)
PERCEPTRON = MLP((16,), classes=3, neuron=NEURON, dropout=0.2)
CONVOLUTIONS = ConvNet((4, 6), classes=3, neuron=NEURON, dropout=0.2)


@functools.cache
def setup(model: nn.Module, rule: Rule, lr: float = 0.1):
    """An optimizer, a compiled update with it, and a state and a batch for it."""
    optimizer = training.make_optimizer("sgd", lr, weight_decay=0.01)
    shape = (5, 8, 8, 1) if isinstance(model, ConvNet) else (5, 7)
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    state = training.init_state(model, optimizer, ENCODE, jax.random.key(0), x)
    update = jax.jit(training.make_update(model, rule, LOSS, optimizer, ENCODE))
    return optimizer, update, state, {"x": x, "y": jnp.asarray([0, 1, 2, 1, 0])}


@pytest.mark.parametrize("model", [PERCEPTRON, pytest.param(CONVOLUTIONS, marks=pytest.mark.slow)], ids=type)
def test_update_is_rule_then_optimizer(model):
    rule = sltt_k(2)
    optimizer, update, first, batch = setup(model, rule)
    state, _ = update(first, batch)
    new, metrics = update(state, batch)
    assert int(new.step) == 2 and new.key == state.key

    @jax.jit
    def by_hand(state, batch):
        _, dropout_key, rule_key = jax.random.split(jax.random.fold_in(state.key, 1), 3)
        start = functional.at_rest(model, state.variables, batch["x"])
        f = rule.value_and_grad(functional.applier(model, key=dropout_key), LOSS)
        (loss, aux), grads = f(state.params, start, Repeat(batch["x"], T), batch["y"], rule_key)
        changes, _ = optimizer.update(grads, state.opt_state, state.params)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        accuracy = (aux.outputs.argmax(-1) == batch["y"]).mean()
        variables = {name: aux.state[name] for name in state.variables}
        return (
            optax.apply_updates(state.params, changes),
            variables,
            training.Metrics(loss, {"accuracy": accuracy}, norm),
        )

    found = new.params, new.variables, metrics
    chex.assert_trees_all_close(found, by_hand(state, batch), rtol=1e-5, atol=1e-7)
    moved = jax.tree.map(lambda a, b: float(abs(np.asarray(a) - b).max()), new.params, state.params)
    assert min(jax.tree.leaves(moved)) > 0


def test_every_update_draws_anew_and_repeats_from_the_same_state():
    _, update, state, batch = setup(PERCEPTRON, sltt(), lr=1e-12)  # parameters stay, so only dropout differs
    one, first = update(state, batch)
    _, second = update(one, batch)
    _, again = update(state, batch)
    assert first.loss == again.loss and first.loss != second.loss


CALLS = []


class Counted(MLP):
    """A network that tells whenever Python runs its `__call__`."""

    def __call__(self, xs, *, train, temporal_gradient):
        CALLS.append(1)
        return super().__call__(xs, train=train, temporal_gradient=temporal_gradient)


def test_an_update_traces_the_network_at_most_twice():
    """Once for the shape of its outputs, and once for the block of the loop."""
    _, update, state, batch = setup(Counted((4,), classes=3, neuron=NEURON), sltt())
    CALLS.clear()
    update.lower(state, batch)
    assert 1 <= len(CALLS) <= 2


def test_evaluation_of_padded_batches_is_that_of_the_whole():
    _, _, state, _ = setup(PERCEPTRON, sltt_k(2))
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(11, 7)).astype(np.float32), rng.integers(0, 3, 11)
    evaluate = jax.jit(training.make_evaluate(PERCEPTRON, LOSS, ENCODE))
    got = training.evaluate_all(evaluate, state, data.padded_batches(x, y, 4))

    @jax.jit
    def whole(state, x):
        start = functional.at_rest(PERCEPTRON, state.variables, x)
        apply = functional.applier(PERCEPTRON, train=False, record=("firing_rate",))
        (outputs, recorded), _ = run(apply, state.params, start, Repeat(x, T))
        return outputs, recorded["firing_rate"], jnp.stack([LOSS(o, y) for o in outputs])

    outputs, rates, loss = whole(state, x)
    right = np.cumsum(outputs, 0).argmax(-1) == y[None]
    np.testing.assert_allclose(got["accuracy_per_step"], right.mean(1), rtol=1e-6)
    assert got["accuracy"] == got["accuracy_per_step"][-1]
    np.testing.assert_allclose(got["loss"], loss.mean(), rtol=1e-5)
    expected = {name: rate["rate"].mean() for name, rate in rates.items()}
    chex.assert_trees_all_close(got["firing_rates"], expected, rtol=1e-5)
    assert min(expected.values()) > 0
    with pytest.raises(ValueError, match="no sample to evaluate"):
        training.evaluate_all(evaluate, state, [])
