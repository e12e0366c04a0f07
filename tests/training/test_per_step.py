"""Updates, evaluations and epochs of tasks with a target at every step, and of samples with weights."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sltt_jax import data, functional, losses, run, training
from sltt_jax.data import encoders
from sltt_jax.models import MLP
from sltt_jax.neurons import Neuron
from sltt_jax.rules import sltt

pytestmark = pytest.mark.usefixtures("quick_compile")

T, N = 5, 8
MODEL = MLP((12,), 3, Neuron(tau=2.0, v_threshold=0.4))
ENCODE = encoders.event_frames()
LOSS = losses.classification(mse_weight=0.05)
PER_STEP = {"encode_target": encoders.per_step}


def samples():
    """Sequences `[N, T, 6]` of different lengths, and which of three numbers is largest at each step.

    After the end of a sequence some labels could be right and some are none.
    """
    rng = np.random.default_rng(0)
    x, lengths = rng.normal(size=(N, T, 6)).astype(np.float32), np.array([4, 1, 2, 1, 3, 0, 0, 0])
    weight = np.asarray(losses.length_weights(jnp.asarray(lengths), T)).T * rng.uniform(0.5, 2, (N, 1))
    y = np.where((weight == 0) & (np.arange(N) < 4)[:, None], -1, x[..., :3].argmax(-1))
    return x, {"y": y, "weight": weight.astype(np.float32)}


@functools.cache
def start(dtype=np.float32):
    x, _ = samples()
    state = training.init_state(MODEL, optax.sgd(0.1), ENCODE, jax.random.key(0), jnp.asarray(x))
    cast = lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a
    return jax.tree.map(cast, state)


@functools.cache
def outputs():
    """The outputs of all steps, `[N, T, 3]`, as the state at the start computes them."""
    x, _ = samples()
    at_rest = functional.at_rest(MODEL, {}, jnp.asarray(x[:, 0]))
    found, _ = run(functional.applier(MODEL, train=False), start().params, at_rest, x.swapaxes(0, 1))
    return np.asarray(found).swapaxes(0, 1)


def loss_by_hand(y, weight):
    of = lambda o, y: float(LOSS(o[None], jnp.asarray([y])))
    found = [w * of(o, y) for o, y, w in zip(outputs().reshape(-1, 3), y.flat, weight.flat, strict=True) if w]
    return sum(found) / weight.sum()


def make_update(**kwargs):
    return training.make_update(MODEL, sltt(), LOSS, optax.sgd(0.1), ENCODE, **kwargs)


@pytest.mark.slow
def test_the_loss_is_the_mean_over_what_counts_also_of_four_devices(x64):
    x, y = samples()
    batch = {"x": x.astype(float), "y": {**y, "weight": y["weight"].astype(float)}}
    one, of_one = jax.jit(make_update(**PER_STEP))(start(float), batch)
    assert float(of_one.loss) == pytest.approx(loss_by_hand(**y), rel=1e-5)
    right, counts = outputs().argmax(-1) == y["y"], y["weight"] != 0
    assert of_one.values == {"accuracy": pytest.approx((right & counts).sum() / counts.sum())}
    assert of_one.answers == counts.sum() == 11 and (right & ~counts).any()
    devices = training.local_devices(4)
    update = training.parallel(make_update(**PER_STEP, axis_name=training.AXIS), devices, arguments=1)
    four, of_four = update(training.replicate(start(float), devices), training.split(batch, devices))
    # The devices have 5, 3, 3 and 0 answers.
    chex.assert_trees_all_close((four.params, of_four), (one.params, of_one), rtol=1e-10, atol=1e-12)
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), one.params, start(float).params)
    assert min(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.parametrize("weights", [True, False])
def test_evaluation_is_over_the_steps_that_count(weights):
    x, y = samples()
    labels, weight = (y["y"], y["weight"]) if weights else (x[..., :3].argmax(-1), np.ones((N, T)))
    evaluate = jax.jit(training.make_evaluate(MODEL, LOSS, ENCODE, **PER_STEP))
    batches = list(data.padded_batches(x, y if weights else labels, 3))
    batches[-1]["x"][2] = np.nan
    assert batches[-1]["mask"].tolist() == [1, 1, 0]
    found = training.evaluate_all(evaluate, start(), batches)
    right, counts = outputs().argmax(-1) == labels, weight != 0
    assert (right & ~counts).any() == weights
    right &= counts
    assert found["accuracy"] == pytest.approx(right.sum() / counts.sum()) and right.any()
    asked = counts.sum(0)
    expected = [r / n if n else None for r, n in zip(right.sum(0), asked, strict=True)]
    assert found["accuracy_per_step"] == expected and (expected[-1] is None) == weights
    assert found["loss"] == pytest.approx(loss_by_hand(labels, weight), rel=1e-5)
    assert 0.02 < found["firing_rates"]["LIF_0"] < 0.6


def test_evaluation_on_four_devices_is_that_on_one():
    x, y = samples()
    batch = {"x": x, "y": y, "mask": np.array([1, 1, 1, 0, 1, 1, 0, 0])}
    build = functools.partial(training.make_evaluate, MODEL, LOSS, ENCODE, **PER_STEP)
    one = jax.jit(build())(start().params, {}, batch)
    assert one.samples == 5 and one.answers.tolist() == [4, 3, 2, 1, 0]
    devices = training.local_devices(4)
    evaluate = training.parallel(build(axis_name=training.AXIS), devices, arguments=2)
    four = evaluate(training.replicate(start().params, devices), {}, training.split(batch, devices))
    chex.assert_trees_all_close(four, one, rtol=1e-6)


@pytest.mark.slow
def test_weights_of_samples():
    """One of 0 is as if the sample were not there, and an update does not see how large they all are."""
    x, y = samples()
    labels, weight = y["y"][:, 0].clip(0), np.array([1, 2, 0, 1, 0, 0, 0, 0], np.float32)
    update, few = jax.jit(make_update()), np.array([0, 1, 1, 3])
    states = [
        update(start(), {"x": x, "y": {"y": labels, "weight": weight}}),
        update(start(), {"x": x, "y": {"y": labels, "weight": 7 * weight}}),
        update(start(), {"x": x[few], "y": labels[few]}),
    ]
    (state, metrics), (other, _), (expected, without) = states
    right = without.values["accuracy"] * 4  # in which the second sample is twice
    _, alone = update(start(), {"x": x[few[1:3]], "y": labels[few[1:3]]})
    assert metrics.answers == 3 and without.answers is None
    assert metrics.values["accuracy"] == pytest.approx((right - alone.values["accuracy"]) / 3)
    chex.assert_trees_all_close((state.params, other.params), (expected.params,) * 2, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(metrics.loss, without.loss, rtol=1e-5)
    evaluate = jax.jit(training.make_evaluate(MODEL, LOSS, ENCODE))
    weighted, plain = (
        training.evaluate_all(evaluate, start(), [{"x": x, "y": y, "mask": mask}])
        for y, mask in (({"y": labels, "weight": 3 * (weight != 0)}, np.ones(N)), (labels, weight != 0))
    )
    chex.assert_trees_all_close(weighted, plain, rtol=1e-5)
    with pytest.raises(ValueError, match="no sample to evaluate, or all have a weight of 0"):
        nothing = {"x": x, "y": {"y": labels, "weight": 0 * weight}, "mask": np.ones(N)}
        training.evaluate_all(evaluate, start(), [nothing])


def test_values_at_every_step():
    """Regression has no accuracy, and its targets are checked against the inputs."""
    x, y = samples()
    target = {"y": np.where(y["weight"][..., None] == 0, np.nan, x[..., :3]), "weight": y["weight"]}
    evaluate = jax.jit(
        training.make_evaluate(MODEL, losses.weighted(losses.membrane_mse), ENCODE, **PER_STEP)
    )
    batch = {"x": x, "y": target, "mask": np.ones(N)}
    found = training.evaluate_all(evaluate, start(), [batch])
    error = ((outputs() - x[..., :3]) ** 2).mean(-1)
    assert found["loss"] == pytest.approx((y["weight"] * error).sum() / y["weight"].sum(), rel=1e-5)
    assert set(found) == {"loss", "firing_rates"}
    with pytest.raises(ValueError, match="has 4 time steps and the inputs T=5"):
        evaluate(start().params, {}, {**batch, "y": jax.tree.map(lambda a: a[:, :4], target)})


@pytest.mark.slow
def test_epochs_of_a_task_with_an_answer_at_every_step(tmp_path):
    """It learns, and its speed is in samples, not in answers."""
    x, _ = samples()
    x = np.tile(x, (8, 1, 1))
    y = {"y": x[..., :3].argmax(-1), "weight": np.ones(x.shape[:2], np.float32)}
    optimizer = optax.adam(0.03)
    state = training.init_state(MODEL, optimizer, ENCODE, jax.random.key(0), jnp.asarray(x[:16]))
    update = training.make_update(MODEL, sltt(), LOSS, optimizer, ENCODE, **PER_STEP)
    with training.Checkpoints(tmp_path) as checkpoints:
        records = list(
            training.train_epochs(
                state, jax.jit(update, donate_argnums=0),
                jax.jit(training.make_evaluate(MODEL, LOSS, ENCODE, **PER_STEP)),
                data.Prefetch(data.ArrayBatches(x, y, 16, seed=0)),
                {"test": lambda: data.padded_batches(x, y, 16)},
                epochs=6, checkpoints=checkpoints, workdir=tmp_path, score="test_accuracy",
            )
        )  # fmt: skip
    assert records[-1]["test_accuracy"] > 0.8 > records[0]["test_accuracy"]
    assert records[-1]["train_accuracy"] > 0.8 > records[0]["train_accuracy"] > 0.2
    first = records[0]
    assert first["samples_per_second"] == pytest.approx(
        len(x) / (first["data_seconds"] + first["update_seconds"])
    )


def test_samples_of_a_batch():
    batch = {"x": np.zeros((8, 5, 3)), "y": {"y": np.zeros((8, 5)), "weight": np.zeros((8, 5))}}
    assert training.samples_of(batch) == training.samples_of(jax.device_put(batch)) == 8
    for count in (1, 4):
        assert training.samples_of(training.split(batch, training.local_devices(count))) == 8
