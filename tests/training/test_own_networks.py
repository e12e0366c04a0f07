"""Networks that are functions, and metrics of one's own, in updates and evaluations."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sltt_jax import data, functional, lif, losses, training
from sltt_jax.blocks import PerStep, Repeat, run
from sltt_jax.data import encoders
from sltt_jax.models import MLP
from sltt_jax.neurons import Neuron
from sltt_jax.rules import bptt, sltt, sltt_k

pytestmark = pytest.mark.usefixtures("quick_compile")

T, N = 4, 8
MODEL = MLP((12,), 3, Neuron(tau=2.0, v_threshold=0.4))
FRAMES = encoders.event_frames()
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01))
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, T, 6)).astype(np.float32), RNG.integers(0, 3, N)
BATCH = {"x": X, "y": Y}
AT_REST = {"start": lambda kept, x: functional.at_rest(MODEL, {}, x)}


@functools.cache
def start():
    return training.init_state(MODEL, OPTIMIZER, FRAMES, jax.random.key(0), jnp.asarray(X))


@pytest.mark.slow
def test_a_function_is_trained_and_evaluated_as_the_module_that_it_is():
    update = lambda model, **how: jax.jit(
        training.make_update(model, sltt(2), losses.cross_entropy, OPTIMIZER, FRAMES, **how)
    )
    of_function = update(functional.applier(MODEL), **AT_REST)(start(), BATCH)
    chex.assert_trees_all_equal(of_function, update(MODEL)(start(), BATCH))
    evaluate = lambda model, **how: jax.jit(
        training.make_evaluate(model, losses.cross_entropy, FRAMES, **how)
    )(start().params, {}, BATCH | {"mask": np.arange(N) < 5})
    found = evaluate(functional.applier(MODEL, train=False), **AT_REST)
    expected = evaluate(MODEL)
    assert found.firing_rates == {} and expected.firing_rates.keys() == {"LIF_0"}
    chex.assert_trees_all_equal(found, expected._replace(firing_rates={}))


def normalised(params, state, xs, *, temporal_gradient):
    """A network whose state is a membrane, and running means and a count, which go on."""
    v, kept = state
    v, spikes = lif(v, xs @ params["w"], Neuron(tau=2.0), temporal_gradient=temporal_gradient)
    kept = {"mean": 0.9 * kept["mean"] + 0.1 * xs.mean(), "steps": kept["steps"] + len(xs)}
    return spikes @ params["readout"], (v, kept)


@pytest.mark.slow
def test_what_a_function_keeps_goes_on_and_is_averaged_over_devices():
    params = {"w": RNG.normal(size=(6, 12)), "readout": RNG.normal(size=(12, 3))}
    params = jax.tree.map(np.float32, params)
    kept = {"mean": np.float32(0), "steps": np.int32(0)}
    build = functools.partial(
        training.make_update, normalised, sltt(), losses.cross_entropy, OPTIMIZER, FRAMES,
        start=lambda kept, x: (jnp.zeros((len(x), 12)), kept), kept=lambda state: state[1],
    )  # fmt: skip
    state, update = training.state_of(params, OPTIMIZER, jax.random.key(0), kept), jax.jit(build())
    for _ in range(2):
        state, _ = update(state, BATCH)
    mean = 0.0
    for t in [*range(T), *range(T)]:
        mean = 0.9 * mean + 0.1 * X[:, t].mean()
    assert state.variables == {"mean": pytest.approx(mean, rel=1e-5), "steps": 2 * T}
    devices = training.local_devices(4)
    parallel = training.parallel(build(axis_name=training.AXIS), devices, arguments=1, donate=True)
    four = training.replicate(training.state_of(params, OPTIMIZER, jax.random.key(0), kept), devices)
    for _ in range(2):
        four, _ = parallel(four, training.split(BATCH, devices))
    assert four.variables["steps"].dtype == jnp.int32
    chex.assert_trees_all_close(
        (four.params, four.variables), (state.params, state.variables), rtol=1e-4, atol=1e-6
    )
    assert np.isfinite(params["w"]).all()  # the update took the memory of copies


def test_a_function_that_keeps_nothing_leaves_variables_as_they_are():
    update = training.make_update(
        functional.applier(MODEL), sltt(), losses.cross_entropy, OPTIMIZER, FRAMES, **AT_REST
    )
    state, _ = jax.eval_shape(update, start()._replace(variables={"constant": jnp.ones(3)}), BATCH)
    assert state.variables["constant"].shape == (3,)


def test_networks_that_cannot_be():
    function, build = functional.applier(MODEL), training.make_evaluate
    with pytest.raises(ValueError, match=r"needs start\(variables, x\) -> state"):
        build(function, losses.cross_entropy, FRAMES)
    with pytest.raises(ValueError, match="a Linen module needs none"):
        build(MODEL, losses.cross_entropy, FRAMES, **AT_REST)


def test_a_start_that_returns_nothing():
    update = training.make_update(
        functional.applier(MODEL), sltt(), losses.cross_entropy, OPTIMIZER, FRAMES, start=lambda kept, x: None
    )
    with pytest.raises(ValueError, match=r"start must return the state of the network, or \(\).*got None"):
        jax.eval_shape(update, start(), BATCH)


@pytest.mark.parametrize("rule", [bptt(), sltt(2), sltt_k(2)], ids=str)
def test_a_network_without_a_state(rule):
    params = {"w": RNG.normal(size=(6, 3)).astype(np.float32)}
    linear = lambda params, state, xs, *, temporal_gradient: (xs @ params["w"], state)
    how = {"encode": FRAMES, "start": lambda kept, x: ()}
    update = jax.jit(training.make_update(linear, rule, losses.cross_entropy, optax.sgd(0.1), **how))
    evaluate = jax.jit(training.make_evaluate(linear, losses.cross_entropy, **how))
    state = training.state_of(params, optax.sgd(0.1), jax.random.key(0))
    new, metrics = update(state, BATCH)
    found = training.evaluate_all(evaluate, state, data.padded_batches(X, Y, 5))
    assert metrics.loss == pytest.approx(found["loss"], rel=1e-5)
    assert abs(new.params["w"] - params["w"]).max() > 1e-3


def update_of(**how):
    made = training.make_update(MODEL, sltt(), losses.cross_entropy, OPTIMIZER, FRAMES, **how)
    return lambda batch: jax.eval_shape(made, start(), batch)


def evaluation_of(**how):
    made = training.make_evaluate(MODEL, losses.cross_entropy, FRAMES, **how)
    return lambda batch: jax.eval_shape(made, start().params, {}, batch | {"mask": np.ones(len(batch["x"]))})


@pytest.mark.parametrize("build", [update_of, evaluation_of])
@pytest.mark.parametrize("encode_target", [lambda y: y, encoders.per_step], ids=["of all steps", "of each"])
@pytest.mark.parametrize("name", ["loss", "grad_norm", "firing_rates", "right_per_step"])
def test_names_that_metrics_cannot_have(build, encode_target, name):
    def metrics(outputs, y):
        right = outputs.argmax(-1) == y
        return {"right": right, name: right}

    batch = {"x": X, "y": Y if encode_target is not encoders.per_step else np.tile(Y[:, None], (1, T))}
    how = {"metrics": metrics, "encode_target": encode_target}
    with pytest.raises(ValueError, match=f"a metric cannot be named '{name}', .* the name of another number"):
        build(**how)(batch)


@pytest.mark.parametrize("build", [update_of, evaluation_of])
def test_batches_without_samples_or_steps(build):
    with pytest.raises(ValueError, match="a batch must hold at least one sample, got none"):
        build()({"x": X[:0], "y": Y[:0]})
    with pytest.raises(ValueError, match="inputs must have at least one time step, got T=0"):
        build()({"x": X[:, :0], "y": Y})


RULES = [(sltt(), FRAMES), (bptt(), lambda x, key: Repeat(x[:, 0], T))]
SLOW_RULES = [(sltt(3), FRAMES), (sltt_k(2), FRAMES)]


@pytest.mark.parametrize(
    ("rule", "encode"),
    [
        *(pytest.param(*pair, id=str(pair[0])) for pair in RULES),
        *(pytest.param(*pair, id=str(pair[0]), marks=pytest.mark.slow) for pair in SLOW_RULES),
    ],
)
def test_accuracy_of_training_is_over_the_steps_that_count(rule, encode):
    """Of labels at each step, with steps without one, and samples without any."""
    y, weight = RNG.integers(0, 3, (N, T)), RNG.integers(0, 2, (N, T)).astype(np.float32)
    inputs = encode(jnp.asarray(X), None)
    outputs, _ = run(
        functional.applier(MODEL), start().params, AT_REST["start"]({}, jnp.asarray(X[:, 0])), inputs
    )
    right = np.asarray(outputs).argmax(-1).T == y
    loss = losses.classification()
    for target, counts in (({"y": y, "weight": weight}, weight), (y, np.ones((N, T)))):
        update = training.make_update(MODEL, rule, loss, OPTIMIZER, encode, encode_target=encoders.per_step)
        _, metrics = jax.jit(update)(start(), {"x": X, "y": target})
        assert metrics.answers == counts.sum()
        assert metrics.values == {"accuracy": pytest.approx((right * counts).sum() / counts.sum())}


def own(outputs, target):
    """How large the right output is, and whether it is among the two largest."""
    value = jnp.take_along_axis(outputs, target[:, None], -1)
    return {"value": value[:, 0], "among_two": (outputs > value).sum(-1) < 2}


def test_metrics_of_ones_own():
    update = training.make_update(MODEL, sltt(), losses.cross_entropy, OPTIMIZER, FRAMES, metrics=own)
    _, metrics = jax.jit(update)(start(), BATCH)
    outputs, _ = run(
        functional.applier(MODEL),
        start().params,
        AT_REST["start"]({}, jnp.asarray(X[:, 0])),
        X.swapaxes(0, 1),
    )
    sums = np.cumsum(np.asarray(outputs), 0)
    value = np.stack([s[np.arange(N), Y] for s in sums])
    among = (sums > value[..., None]).sum(-1) < 2
    assert metrics.values == {
        "value": pytest.approx(value[-1].mean(), rel=1e-5), "among_two": pytest.approx(among[-1].mean())
    }  # fmt: skip
    evaluate = jax.jit(training.make_evaluate(MODEL, losses.cross_entropy, FRAMES, metrics=own))
    found = training.evaluate_all(evaluate, start(), data.padded_batches(X, Y, 5))
    np.testing.assert_allclose(found["value_per_step"], value.mean(1), rtol=1e-5)
    assert found["among_two"] == pytest.approx(among[-1].mean()) and "accuracy" not in found
    assert 0 < among.mean() < 1


def test_metrics_of_a_step():
    """With an output and a target at each, as `PerStep`: also of evaluation on its own."""
    y = RNG.integers(0, 3, (N, T))
    outputs, _ = run(
        functional.applier(MODEL),
        start().params,
        AT_REST["start"]({}, jnp.asarray(X[:, 0])),
        X.swapaxes(0, 1),
    )
    value = np.take_along_axis(np.asarray(outputs), y.T[..., None], -1)[..., 0]
    how = {"encode_target": encoders.per_step, "metrics": own}
    update = training.make_update(MODEL, sltt(), losses.cross_entropy, OPTIMIZER, FRAMES, **how)
    _, metrics = jax.jit(update)(start(), {"x": X, "y": y})
    assert (
        float(metrics.values["value"]) == pytest.approx(value.mean(), rel=1e-5) and metrics.answers == N * T
    )
    evaluate = jax.jit(training.make_evaluate(MODEL, losses.cross_entropy, FRAMES, **how))
    found = training.evaluate_all(evaluate, start(), data.padded_batches(X, y, 5))
    np.testing.assert_allclose(found["value_per_step"], value.mean(1), rtol=1e-5)
    assert found["value"] == pytest.approx(value.mean(), rel=1e-5)


@pytest.mark.parametrize("target", [Y, PerStep(Y)], ids=["of all steps", "of each"])
def test_metrics_are_numbers_of_samples(target):
    one = lambda outputs, y: {"mean": outputs.mean()}
    encode_target = (lambda y: y) if target is Y else encoders.per_step
    y = Y if target is Y else np.tile(Y[:, None], (1, T))
    update = training.make_update(
        MODEL, sltt(), losses.cross_entropy, OPTIMIZER, FRAMES, metrics=one, encode_target=encode_target
    )
    with pytest.raises(ValueError, match=r"a number for each sample \[B\], but mean has the shape \(\)"):
        jax.eval_shape(update, start(), {"x": X, "y": y})


def test_a_state_is_drawn_by_one_program():
    """Which the second call finds; also of a network that holds arrays, which is no key of a program."""
    calls = []

    def counted(x, key):
        calls.append(isinstance(x, jax.core.Tracer))
        return FRAMES(x, key)

    for _ in range(2):
        state = training.init_state(MODEL, OPTIMIZER, counted, jax.random.key(0), X)
    assert calls == [True]
    chex.assert_trees_all_equal(state.params, start().params)
    held = MODEL.clone(neuron=Neuron(tau=jnp.full((1, 12), 2.0), v_threshold=0.4))
    state = training.init_state(held, OPTIMIZER, counted, jax.random.key(0), X)
    assert calls == [True, True]
    chex.assert_trees_all_equal(state.params, start().params)


def test_epochs_with_metrics_of_ones_own(tmp_path):
    """They are in the records, and the best epoch is known by one of them."""
    x, y = np.tile(X, (4, 1, 1)), np.tile(Y, 4)
    how = {"metrics": own, **AT_REST}
    update = training.make_update(
        functional.applier(MODEL), sltt(), losses.cross_entropy, OPTIMIZER, FRAMES, **how
    )
    evaluate = training.make_evaluate(
        functional.applier(MODEL, train=False), losses.cross_entropy, FRAMES, **how
    )
    state = training.state_of(start().params, OPTIMIZER, jax.random.key(0))
    with training.Checkpoints(tmp_path) as checkpoints:
        records = list(
            training.train_epochs(
                state, jax.jit(update, donate_argnums=0), jax.jit(evaluate),
                data.ArrayBatches(x, y, 8, seed=0), {"test": lambda: data.padded_batches(x, y, 8)},
                epochs=3, checkpoints=checkpoints, workdir=tmp_path, score="test_value",
            )
        )  # fmt: skip
    trained = {name for name in records[0] if name.startswith("train_")}
    assert trained == {"train_loss", "train_value", "train_among_two"}
    assert records[-1]["test_value"] > records[0]["test_value"]
    assert len(records[0]["test_value_per_step"]) == T
    assert records[-1]["firing_rates"] == {}
    assert records == training.read_metrics(tmp_path)
    params = training.load_parts(tmp_path, {"params": start().params}, best=True)["params"]
    found = training.evaluate_all(
        jax.jit(evaluate), state._replace(params=params), data.padded_batches(x, y, 8)
    )
    assert found["value"] == pytest.approx(max(record["test_value"] for record in records), rel=1e-6)
