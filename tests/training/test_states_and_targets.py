"""Networks with states of their own, targets of any kind, padding, and gradients that overflow."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sltt_jax import losses, run, training
from sltt_jax.blocks import Repeat
from sltt_jax.layers import LIF, Dense, StepBatchNorm
from sltt_jax.models import MLP
from sltt_jax.neurons import Neuron
from sltt_jax.rules import sltt

pytestmark = pytest.mark.usefixtures("quick_compile")

T, NEURON = 3, Neuron(tau=1.5)
X = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
Y = np.array([0, 1, 2, 1, 0, 2])
ENCODE = lambda x, key: Repeat(x, T)
MODEL = MLP((8,), 3, NEURON)


def start(model, optimizer=optax.sgd(0.0), **kwargs):  # noqa: B008
    return training.init_state(model, optimizer, ENCODE, jax.random.key(0), jnp.asarray(X), **kwargs)


def updated(model, step_loss=losses.cross_entropy, optimizer=optax.sgd(0.0)):  # noqa: B008
    return jax.jit(training.make_update(model, sltt(), step_loss, optimizer, ENCODE))


class Synaptic(nn.Module):
    """A layer that keeps a current from step to step, in a collection of its own name."""

    @nn.compact
    def __call__(self, xs, *, train, temporal_gradient):
        del train
        xs = Dense(3)(xs)
        current = self.variable("synapse", "i", lambda: jnp.zeros(xs.shape[1:]))
        seen = self.variable("memory", "updates", lambda: jnp.zeros(()))
        ys = []
        for x in xs:
            before = current.value if temporal_gradient else jax.lax.stop_gradient(current.value)
            ys.append(0.9 * before + x)
            if not self.is_initializing():
                current.value = ys[-1]
        if not self.is_initializing():
            seen.value = seen.value + len(xs)
        return jnp.stack(ys)


class Remembering(Synaptic):
    kept = ("memory",)


def test_states_start_anew_with_every_batch():
    """Also those that are no membranes; without learning every update then has the same loss."""
    update, state = updated(Synaptic()), start(Synaptic())
    assert state.variables == {}
    found = []
    for _ in range(4):
        state, metrics = update(state, {"x": X, "y": Y})
        found.append(float(metrics.loss))
    assert len(set(found)) == 1 and state.variables == {}


def test_what_a_network_declares_is_kept():
    update, state = updated(Remembering()), start(Remembering())
    for _ in range(4):
        state, _ = update(state, {"x": X, "y": Y})
    chex.assert_trees_all_equal(state.variables, {"memory": {"updates": jnp.asarray(4.0 * T)}})


@pytest.mark.parametrize("drawn", [True, False])
def test_an_optimizer_may_keep_the_parameters_themselves(drawn):
    """An update that takes the memory of its state is given none of it twice."""
    to_the_first = lambda grads, first, p: (jax.tree.map(lambda g, f, p: f - p - g, grads, first, p), first)
    optimizer = optax.GradientTransformation(lambda params: params, to_the_first)
    state = start(MODEL, optimizer)
    if not drawn:
        state = training.state_of(state.params, optimizer, jax.random.key(0))
    before = jax.device_get(state.params)
    update = jax.jit(
        training.make_update(MODEL, sltt(), losses.cross_entropy, optimizer, ENCODE), donate_argnums=0
    )
    state, _ = update(state, {"x": X, "y": Y})
    chex.assert_trees_all_equal(state.opt_state, before)
    assert abs(state.params["Dense_0"]["kernel"] - before["Dense_0"]["kernel"]).max() > 1e-4


def test_evaluation_of_a_network_without_neurons():
    evaluate = jax.jit(training.make_evaluate(Synaptic(), losses.cross_entropy, ENCODE))
    state = start(Synaptic())
    found = evaluate(state.params, state.variables, {"x": X, "y": Y, "mask": np.ones(6)})
    assert found.samples == 6 and found.firing_rates == {} and np.isfinite(found.loss)


@pytest.mark.parametrize(
    "dtype", [np.float32, bool, *(pytest.param(t, marks=pytest.mark.slow) for t in (np.uint8, np.int32))]
)
def test_masks_of_any_type_leave_padding_out(dtype):
    """The padding is undefined on purpose: multiplied by 0 it would still be undefined.

    All answers at the first step are right, more of them than the smaller types can count.
    """
    many = 300
    x = np.repeat(X, many // len(X), 0)
    evaluate = jax.jit(training.make_evaluate(MODEL, losses.cross_entropy, ENCODE))
    state = start(MODEL)
    answers = jax.jit(lambda p, x: MODEL.apply({"params": p}, x[None], train=False, temporal_gradient=True,
                                               mutable=["membrane"])[0])(state.params, x)  # fmt: skip
    y = np.asarray(answers[0].argmax(-1))
    whole = evaluate(state.params, state.variables, {"x": x, "y": y, "mask": np.ones(many, dtype)})
    padded = {"x": np.r_[x, np.full((4, 5), np.nan, np.float32)], "y": np.r_[y, [-1] * 4]}
    mask = np.r_[np.ones(many), np.zeros(4)].astype(dtype)
    found = evaluate(state.params, state.variables, {**padded, "mask": mask})
    assert (
        found.samples == many and float(found.values["accuracy"][0]) == many
    )  # in uint8, 300 would be 44 too
    chex.assert_trees_all_close(found, whole, rtol=1e-6)
    assert 0 < found.firing_rates["LIF_0"].mean() < many and found.loss > 0


def test_labels_of_another_shape():
    batch = {"x": X, "y": Y[:, None]}
    with pytest.raises(ValueError, match=r"labels must be class numbers \[B\], got shape \(6, 1\)"):
        updated(MODEL, lambda o, y: losses.cross_entropy(o, y[:, 0]))(start(MODEL), batch)


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (lambda o, y: optax.losses.softmax_cross_entropy(o, y).mean(), np.full((6, 3), 1 / 3, np.float32)),
        (lambda o, y: jnp.mean((o - y) ** 2), np.zeros((6, 3), np.float32)),
        (lambda o, y: jnp.mean((o.sum(-1) - y) ** 2), np.ones(6, np.float32)),
        (lambda o, y: optax.losses.sigmoid_binary_cross_entropy(o, y).mean(), np.eye(3, dtype=int)[Y]),
    ],
    ids=["soft labels", "regression", "one number", "several classes at once"],
)
def test_targets_that_are_no_class_numbers_have_no_accuracy(loss, y):
    state, metrics = updated(MODEL, loss)(start(MODEL), {"x": X, "y": y})
    assert metrics.values == {} and metrics.loss > 0 and metrics.grad_norm > 0
    evaluate = jax.jit(training.make_evaluate(MODEL, loss, ENCODE))
    batches = [{"x": X, "y": y, "mask": np.ones(6)}]
    found = training.evaluate_all(evaluate, state, batches)
    assert set(found) == {"loss", "firing_rates"} and found["loss"] == pytest.approx(float(metrics.loss))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64])
def test_labels_of_few_bits(dtype):
    """One hot of 1000 classes, where 8 bits would count from 0 again after 255 of them."""
    logits = jax.random.normal(jax.random.key(0), (4, 1000))
    labels = np.array([3, 100, 127, 0])
    for loss in (partial(losses.mean_squared_error, target="one_hot"), losses.cross_entropy):
        assert loss(logits, labels.astype(dtype)) == loss(logits, labels)
    wanted = np.eye(1000)[labels]
    found = losses.mean_squared_error(logits, labels.astype(dtype), target="one_hot")
    np.testing.assert_allclose(found, np.mean((np.asarray(logits) - wanted) ** 2), rtol=1e-5)


class Normalised(nn.Module):
    """A network with batch statistics, whose gradient is what the inputs make it."""

    @nn.compact
    def __call__(self, xs, *, train, temporal_gradient):
        xs = StepBatchNorm()(Dense(8)(xs), train=train)
        return Dense(3)(LIF(NEURON)(xs, temporal_gradient=temporal_gradient))


def test_an_update_that_is_left_out_leaves_everything_as_it_was():
    state = start(Normalised(), scale_loss=True)
    update = updated(Normalised(), optimizer=optax.sgd(0.1))
    state, _ = update(state, {"x": X, "y": Y})
    new, metrics = update(state, {"x": np.where(X > 1, np.inf, X), "y": Y})
    before = state.params, state.variables, state.opt_state
    chex.assert_trees_all_equal((new.params, new.variables, new.opt_state), before)
    assert new.loss_scale.scale == state.loss_scale.scale / 2
    # And training goes on from there.
    new, metrics = update(new, {"x": X, "y": Y})
    chex.assert_tree_all_finite((new.params, new.variables, metrics))
    assert any(
        jnp.any(a != b)
        for a, b in zip(jax.tree.leaves(new.params), jax.tree.leaves(state.params), strict=True)
    )


def test_gradients_that_never_are_finite_end_soon():
    """Of 143 halvings of the scale the first 15 may be an overflow; at a scale of 1 it is none."""
    state = start(MODEL, scale_loss=True)
    update = updated(MODEL)
    norms = []
    for _ in range(17):
        state, metrics = update(state, {"x": np.full_like(X, np.nan), "y": Y})
        norms.append(float(metrics.grad_norm))
    assert norms[0] == 0 and np.isnan(norms[-1]) and state.loss_scale.scale == 1


def test_a_state_that_a_network_keeps_is_shared_between_devices():
    model, devices = Remembering(), training.local_devices(2)
    update = training.make_update(
        model, sltt(), losses.cross_entropy, optax.sgd(0.0), ENCODE, axis_name=training.AXIS
    )
    update = training.parallel(update, devices, arguments=1)
    state, _ = update(start(model), training.split({"x": X, "y": Y}, devices))
    training.check_replicated(state.variables)
    assert state.variables["memory"]["updates"] == T


def test_outputs_of_a_run_are_those_of_training():
    """The control of the layer above: its current does make a difference within a batch."""
    from sltt_jax import functional

    params, state = functional.init(Synaptic(), jax.random.key(0), X)
    outputs, _ = run(functional.applier(Synaptic()), params, state, Repeat(X, T))
    assert jnp.abs(outputs[1] - outputs[0]).max() > 0.1
