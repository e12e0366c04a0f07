import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sltt_jax import data, functional, losses, training
from sltt_jax.blocks import Repeat, run
from sltt_jax.models import MLP, ConvNet
from sltt_jax.neurons import Neuron
from sltt_jax.rules import bptt, sltt, sltt_k

LOSS = losses.classification(mse_weight=0.05)
T = 3


def test_sgd_is_that_of_torch(x64):
    """Coupled weight decay before the momentum: b = 0.9 b + g + wd w, w -= lr b."""
    optimizer = training.make_optimizer("sgd", 0.1, weight_decay=0.01, momentum=0.9)
    w, b = 2.0, 0.0
    params = jnp.asarray(w)
    state = optimizer.init(params)
    for g in (0.5, -1.0, 2.0):
        changes, state = optimizer.update(jnp.asarray(g), state, params)
        params = optax.apply_updates(params, changes)
        b = 0.9 * b + g + 0.01 * w
        w -= 0.1 * b
        np.testing.assert_allclose(params, w, rtol=1e-14)


def test_cosine_per_epoch(x64):
    schedule = training.cosine_per_epoch(0.1, epochs=4, steps_per_epoch=5)
    for step in (0, 4, 5, 9, 10, 19, 20, 50):
        epoch = min(step // 5, 4)
        expected = 0.05 * (1 + math.cos(math.pi * epoch / 4))
        np.testing.assert_allclose(schedule(step), expected, atol=1e-16)


@pytest.mark.parametrize(
    ("args", "settings", "message"),
    [
        (("adam", 0.1), {}, "must be one of .*sgd.*adamw.* got 'adam'"),
        (("sgd", 0.1), {"weight_decay": -1.0}, "weight_decay must be >= 0, got -1"),
        (("sgd", 0.1), {"momentum": 1.0}, "momentum must be in 0..1, got 1"),
    ],
)
def test_wrong_optimizers(args, settings, message):
    with pytest.raises(ValueError, match=message):
        training.make_optimizer(*args, **settings)


def setup(rule, model=None, lr=0.1):
    model = model or ConvNet((4, 6), classes=3, neuron=Neuron(tau=1.5), dropout=0.2)
    optimizer = training.make_optimizer("sgd", lr, weight_decay=0.01)
    encode = training.images(T)
    rng = np.random.default_rng(0)
    batch = {"x": jnp.asarray(rng.normal(size=(5, 8, 8, 1)), jnp.float32), "y": jnp.asarray([0, 1, 2, 1, 0])}
    state = training.init_state(model, optimizer, encode, jax.random.key(0), batch["x"])
    return model, optimizer, jax.jit(training.make_update(model, rule, LOSS, optimizer, encode)), state, batch


def test_update_is_rule_then_optimizer():
    rule = sltt_k(2)
    model, optimizer, update, state, batch = setup(rule)
    state, _ = update(state, batch)
    new, metrics = update(state, batch)
    assert int(new.step) == 2 and new.key == state.key
    _, dropout_key, rule_key = jax.random.split(jax.random.fold_in(state.key, 1), 3)
    start = functional.at_rest(model, state.variables, batch["x"])
    apply = functional.applier(model, key=dropout_key)
    f = jax.jit(rule.value_and_grad(apply, LOSS))
    (loss, aux), grads = f(state.params, start, Repeat(batch["x"], T), batch["y"], rule_key)
    changes, _ = optimizer.update(grads, state.opt_state, state.params)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    jax.tree.map(close, new.params, optax.apply_updates(state.params, changes))
    jax.tree.map(close, new.variables, {"batch_stats": aux.state["batch_stats"]})
    close(metrics.loss, loss)
    close(metrics.grad_norm, jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads))))
    close(metrics.accuracy, (aux.outputs.argmax(-1) == batch["y"]).mean())
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), new.params, state.params)
    assert min(jax.tree.leaves(moved)) > 0


def test_every_update_draws_anew_and_repeats_from_the_same_state():
    _, _, update, state, batch = setup(sltt(), lr=1e-12)  # parameters stay, so only dropout differs
    one, first = update(state, batch)
    _, second = update(one, batch)
    _, again = update(state, batch)
    assert first.loss == again.loss and first.loss != second.loss


def test_evaluation_of_padded_batches_is_that_of_the_whole():
    model, _, _, state, _ = setup(sltt())
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(11, 8, 8, 1)).astype(np.float32), rng.integers(0, 3, 11)
    evaluate = jax.jit(training.make_evaluate(model, LOSS, training.images(T)))
    got = training.evaluate_all(evaluate, state, data.padded_batches(x, y, 4))

    start = functional.at_rest(model, state.variables, x)
    apply = functional.applier(model, train=False, record=("firing_rate",))
    (outputs, recorded), _ = run(apply, state.params, start, Repeat(x, T))
    right = jnp.cumsum(outputs, 0).argmax(-1) == y
    np.testing.assert_allclose(got["accuracy_per_step"], right.mean(1), rtol=1e-6)
    assert got["accuracy"] == got["accuracy_per_step"][-1]
    np.testing.assert_allclose(got["loss"], np.mean([LOSS(o, y) for o in outputs]), rtol=1e-5)
    assert set(got["firing_rates"]) == {"LIF_0", "LIF_1"}
    with pytest.raises(ValueError, match="no sample to evaluate"):
        training.evaluate_all(evaluate, state, [])
    for name, rate in got["firing_rates"].items():
        np.testing.assert_allclose(rate, recorded["firing_rate"][name]["rate"].mean(), rtol=1e-5)


def tiny():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int32)
    return data.ArrayData(x[:30], y[:30], x[30:], y[30:], classes=2)


def fit(workdir, epochs=3, rule=sltt_k(1), lr=0.1, stop_after=None, save_every=None):  # noqa: B008
    arrays = tiny()
    model = MLP((12,), classes=2, neuron=Neuron(tau=1.5), dropout=0.1)
    optimizer = training.make_optimizer("sgd", lr)
    encode = training.images(T, augmentation=lambda key, x: x + 0.01 * jax.random.normal(key, x.shape))
    state = training.init_state(model, optimizer, encode, jax.random.key(0), jnp.asarray(arrays.train_x[:5]))
    update = jax.jit(training.make_update(model, rule, LOSS, optimizer, encode), donate_argnums=0)
    states = []

    def watched(state, batch):
        if len(states) == stop_after:
            raise KeyboardInterrupt
        out = update(state, batch)
        states.append(jax.device_get(out[0].params))
        return out

    evaluate = jax.jit(training.make_evaluate(model, LOSS, training.images(T)))
    workdir.mkdir(exist_ok=True)
    records = []
    with contextlib.suppress(KeyboardInterrupt), training.Checkpoints(workdir) as checkpoints:
        records.extend(
            training.train_epochs(
                state, watched, evaluate,
                data.Prefetch(data.ArrayBatches(arrays.train_x, arrays.train_y, 5, seed=0)),
                {"test": lambda: data.padded_batches(arrays.test_x, arrays.test_y, 5)},
                epochs=epochs, checkpoints=checkpoints, workdir=workdir, save_every=save_every,
            )
        )  # fmt: skip
    return records, states


def test_training_learns_and_writes_what_it_yields(tmp_path):
    records, states = fit(tmp_path, epochs=12, rule=sltt())
    assert len(states) == 12 * 6 and [r["epoch"] for r in records] == list(range(1, 13))
    assert records[-1]["train_loss"] < 0.6 * records[0]["train_loss"]
    assert records[-1]["train_accuracy"] >= 0.8 and records[-1]["test_accuracy"] >= 0.7
    assert training.read_metrics(tmp_path) == records
    assert all(r["seconds_per_update"] > 0 for r in records)


def untimed(records):
    """Records without what a clock gave."""
    timed = ("seconds", "per_second", "per_update")
    return [{k: v for k, v in r.items() if not k.endswith(timed)} for r in records]


@pytest.mark.parametrize(
    ("save_every", "again"),
    [
        pytest.param(None, [2, 3], id="from the border of an epoch"),
        pytest.param(2, [2, 3], id="from the middle of an epoch"),
    ],
)
def test_interrupted_and_resumed_is_as_if_never_stopped(tmp_path, save_every, again):
    whole, states = fit(tmp_path / "whole")
    before, _ = fit(tmp_path / "parts", stop_after=9, save_every=save_every)  # in the second epoch
    assert len(before) == 1
    after, resumed = fit(tmp_path / "parts")
    assert [r["epoch"] for r in after] == again
    # Six updates an epoch: what was saved last came after 6 or after 8 updates.
    assert len(resumed) == 18 - (8 if save_every else 6)
    jax.tree.map(np.testing.assert_array_equal, resumed[-1], states[-1])
    assert untimed(training.read_metrics(tmp_path / "parts")) == untimed(whole)


def test_divergence_stops_and_keeps_the_last_good_state(tmp_path):
    with pytest.raises(
        FloatingPointError,
        match=r"(loss|grad_norm) is (nan|inf) in update \d of epoch 1: .*last good state is",
    ):
        fit(tmp_path, lr=1e30, rule=bptt())
    assert training.read_metrics(tmp_path) == []
    assert (tmp_path / training.CHECKPOINTS / "0").is_dir()
    # Training goes on from it with a learning rate that works.
    records, _ = fit(tmp_path)
    assert [r["epoch"] for r in records] == [1, 2, 3]
