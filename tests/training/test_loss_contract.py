"""A loss is a mean over samples, so that training, evaluation and several devices have the same one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sltt_jax import data, lif, losses, training
from sltt_jax.data import encoders
from sltt_jax.neurons import Neuron
from sltt_jax.rules import bptt, sltt

pytestmark = pytest.mark.usefixtures("quick_compile")

B, T, N, CLASSES = 8, 4, 12, 3
RNG = np.random.default_rng(0)
PARAMS = {"w": RNG.normal(size=(6, N)), "readout": RNG.normal(size=(N, CLASSES))}
PARAMS = jax.tree.map(np.float32, PARAMS)
X, Y = RNG.normal(size=(B, T, 6)).astype(np.float32), np.array([0, 0, 1, 2, 0, 1, 0, 0])
OF_CLASSES = np.float32([1, 5, 20])
OPTIMIZER = optax.sgd(0.1)
HOW = {"encode": encoders.event_frames(), "start": lambda kept, x: jnp.zeros((len(x), N))}


def apply(params, v, xs, *, temporal_gradient):
    v, spikes = lif(v, xs @ params["w"], Neuron(tau=2.0), temporal_gradient=temporal_gradient)
    return spikes @ params["readout"], v


def each(logits, y):
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)


def over_weights(logits, y):
    """That of `torch.nn.CrossEntropyLoss(weight=OF_CLASSES)`."""
    return (jnp.asarray(OF_CLASSES)[y] * each(logits, y)).sum() / jnp.asarray(OF_CLASSES)[y].sum()


def in_target(logits, target):
    return (target["of_classes"][target["c"]] * each(logits, target["c"])).mean()


def of_dict(logits, target):
    """One that takes weights without the help of `losses.weighted`."""
    return (target["weight"] * each(logits, target["y"])).mean()


def state():
    return training.state_of(PARAMS, OPTIMIZER, jax.random.key(0))


def update(loss, y, **how):
    made = training.make_update(apply, sltt(), loss, OPTIMIZER, **HOW, **how)
    return jax.jit(made)(state(), {"x": X, "y": y})


def evaluate(loss, y, **how):
    made = training.make_evaluate(apply, loss, **HOW, **how)
    return jax.jit(made)(PARAMS, {}, {"x": X, "y": y, "mask": np.ones(B)})


def on_four(loss, y):
    devices = training.local_devices(4)
    made = training.make_update(apply, sltt(), loss, OPTIMIZER, **HOW, axis_name=training.AXIS)
    of_each = training.split({"x": X, "y": y}, devices)
    return training.parallel(made, devices, arguments=1)(training.replicate(state(), devices), of_each)


def test_weights_of_classes_in_training_in_evaluation_and_on_four_devices():
    """With numbers by hand, those of torch: the mean over the sum of the weights."""
    target = {"y": Y, "weight": OF_CLASSES[Y]}
    loss = losses.weighted(losses.cross_entropy)
    one, metrics = update(loss, target)
    four, of_four = on_four(loss, target)
    evaluated = jax.jit(training.make_evaluate(apply, loss, **HOW))
    # Also with batches that are not full, in which the weights add up to something else.
    found = training.evaluate_all(evaluated, state(), data.padded_batches(X, target, 5))
    f = sltt().value_and_grad(apply, over_weights)
    (by_hand, _), grads = jax.jit(f)(PARAMS, jnp.zeros((B, N)), X.swapaxes(0, 1), Y)
    for value in (metrics.loss, of_four.loss, found["loss"]):
        assert value == pytest.approx(float(by_hand), rel=1e-5)
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, PARAMS, grads)
    chex.assert_trees_all_close(one.params, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(four.params, expected, rtol=1e-5, atol=1e-6)
    # Negative controls: the weights matter, and the gradient is not zero.
    assert abs(update(losses.cross_entropy, Y)[1].loss - by_hand) > 0.1
    assert min(float(abs(g).max()) for g in jax.tree.leaves(grads)) > 1e-3


NO_MEANS = {
    "over the sum of class weights": over_weights,
    "sum": lambda logits, y: each(logits, y).sum(),
    "of a batch of another size": lambda logits, y: each(logits, y).sum() / (2 * B),
    "largest": lambda logits, y: each(logits, y).max(),
    "rate of the batch": lambda logits, y: each(logits, y).mean() + (logits.mean() - 0.1) ** 2,
}


@pytest.mark.parametrize("name", NO_MEANS)
@pytest.mark.parametrize("build", [update, evaluate, on_four])
def test_a_loss_that_is_no_mean_is_refused(name, build):
    message = r"the loss of 4 samples is .*, and the mean of theirs is .*: step_loss must be a mean"
    with pytest.raises(ValueError, match=message):
        build(NO_MEANS[name], Y)


def test_the_message_has_the_numbers():
    with pytest.raises(ValueError, match=r"of 4 samples is 4, and the mean of theirs is 1: "):
        update(lambda logits, y: jnp.ones_like(each(logits, y)).sum() + 0 * logits.sum(), Y)


MEANS = {
    "half precision": lambda o, y: each(o.astype(jnp.bfloat16), y).mean(),
    "logarithms": lambda o, y: -(y * jnp.log(o) + (1 - y) * jnp.log(1 - o)).mean(),
    "a constant beside it": lambda o, y: 3.0 + ((o - y) ** 2).mean(),
    "nothing": lambda o, y: 0 * o.sum(),
    "not a number": lambda o, y: (jnp.log(o - 2) + y).mean(),
}


@pytest.mark.parametrize("name", MEANS)
def test_means_over_samples_are_taken(name):
    y = Y if name == "half precision" else RNG.uniform(size=(B, CLASSES)).astype(np.float32)
    how = {"metrics": lambda o, y: {}}
    made = training.make_update(apply, bptt(), MEANS[name], OPTIMIZER, **HOW, **how)
    jax.eval_shape(made, state(), {"x": X, "y": y})
    evaluate(MEANS[name], y, **how)


def test_the_check_is_no_trouble_to_those_who_look_for_trouble():
    """It moves nothing to the device unasked, and what is not a number in it is none of the user's."""
    how = {"metrics": lambda o, y: {}}
    y = RNG.uniform(size=(B, CLASSES)).astype(np.float32)
    made = training.make_update(apply, sltt(), MEANS["not a number"], OPTIMIZER, **HOW, **how)
    batch = jax.device_put({"x": X, "y": y})
    before = state()
    with jax.debug_nans(True), jax.debug_infs(True), jax.transfer_guard("disallow"):
        jax.eval_shape(made, before, batch)


def test_a_loss_may_take_weights_by_itself():
    target = {"y": Y, "weight": OF_CLASSES[Y]}
    found, expected = (update(loss, target)[1] for loss in (of_dict, losses.weighted(losses.cross_entropy)))
    chex.assert_trees_all_close(found, expected, rtol=1e-6)


def test_a_loss_of_traced_numbers_goes_unchecked():
    def of(factor):
        made = training.make_update(
            apply, sltt(), lambda o, y: factor * losses.cross_entropy(o, y), OPTIMIZER, **HOW
        )
        return made(state(), {"x": X, "y": Y})[1].loss

    one, two = jax.jit(jax.vmap(of))(jnp.asarray([1.0, 2.0]))
    assert two == pytest.approx(2 * one) and one > 0


@pytest.mark.parametrize("build", [update, evaluate])
def test_a_target_has_a_number_for_each_sample(build):
    target = {"c": Y, "of_classes": OF_CLASSES}
    message = (
        r"target\['of_classes'\] must be an array \[B, ...\] of B=8 samples, got shape \(3,\); weights of"
    )
    with pytest.raises(ValueError, match=message):
        build(in_target, target, metrics=lambda o, y: {})


@pytest.mark.parametrize("build", [update, evaluate])
@pytest.mark.parametrize("loss", [losses.cross_entropy, lambda o, y: ((o - y) ** 2).mean(), each])
def test_weights_that_a_loss_does_not_take(build, loss):
    with pytest.raises(
        ValueError, match=r"fails on a target with weights.*that takes them is losses.weighted"
    ):
        build(loss, {"y": Y, "weight": OF_CLASSES[Y]})


@pytest.mark.parametrize("build", [update, evaluate])
def test_a_loss_is_a_scalar(build):
    with pytest.raises(ValueError, match=r"step_loss must return a scalar for one step, got shape \(4,\)"):
        build(each, Y)


def test_a_loss_is_compared_once_for_each_form():
    """Also in another update: what is compared is a program of its own."""
    calls = []

    def loss(logits, y):
        calls.append(logits.shape[0])
        return each(logits, y).mean()

    update(loss, Y)
    compared = calls.count(4)
    assert compared == 1 and calls.count(B) >= 1
    update(loss, Y)
    evaluate(loss, Y)
    assert calls.count(4) == compared
