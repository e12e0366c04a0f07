"""Layers of cells in Linen: the functions of `cells`, with their states and parameters in collections."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import (
    Neuron,
    alif,
    bptt,
    functional,
    li,
    lif,
    lif_step,
    over_time,
    recurrent,
    run,
    sltt,
    synaptic,
)
from sltt_jax.analysis import activity, recording
from sltt_jax.layers import ALIF, FIRING_RATE, LI, LIF, Recurrent, Synaptic
from sltt_jax.models import RecurrentNet
from sltt_jax.time_constants import tau_of
from tests.common.nets import assert_close, difference, squared_error

pytestmark = pytest.mark.usefixtures("quick_compile")


def init(layer, xs):
    """Variables of a layer, drawn by one program."""
    draw = jax.jit(partial(layer.init, temporal_gradient=True))
    return dict(draw(jax.random.key(0, impl="rbg"), xs))


def outputs_of(layer, variables, xs, *mutable):
    """Outputs of a layer without temporal gradient, and what it changed."""
    return jax.jit(partial(layer.apply, temporal_gradient=False, mutable=["membrane", *mutable]))(
        variables, xs
    )


T, B, N = 5, 3, 6
NEURON = Neuron(tau=3.0, v_threshold=0.5)
rng = np.random.default_rng(0)
XS = jnp.asarray(rng.normal(size=(T, B, N)) + 0.3, jnp.float32)
ZERO = jnp.zeros((B, N))

# Each layer, what it is as a function of state and input with the taus that it learned, and its state.
LAYERS = {
    "LIF": (
        lambda learn: LIF(NEURON, learn_tau=learn),
        lambda xs, tau: lif(ZERO, xs, Neuron(tau("", 3.0), 0.5)),
        ("v",),
    ),
    "ALIF": (
        lambda learn: ALIF(NEURON, 7.0, 0.9, learn_tau=learn),
        lambda xs, tau: alif((ZERO,) * 3, xs, Neuron(tau("", 3.0), 0.5), tau("_a", 7.0), 0.9),
        ("v", "a", "s"),
    ),
    "Synaptic": (
        lambda learn: Synaptic(NEURON, 4.0, learn_tau=learn),
        lambda xs, tau: synaptic((ZERO, ZERO), xs, Neuron(tau("", 3.0), 0.5), tau("_syn", 4.0)),
        ("v", "i"),
    ),
    "LI": (lambda learn: LI(5.0, learn_tau=learn), lambda xs, tau: li(ZERO, xs, tau("", 5.0)), ("v",)),
    "LI, a moving average": (
        lambda learn: LI(5.0, decay_input=True, learn_tau=learn),
        lambda xs, tau: li(ZERO, xs / jnp.reshape(tau("", 5.0), (1, 1, -1)), tau("", 5.0)),
        ("v",),
    ),
}


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_its_function(name, learn):
    make, function, names = LAYERS[name]
    layer = make(learn)
    variables = init(layer, XS)
    assert variables["membrane"].keys() == {*names} and ("params" in variables) == learn
    params = variables.pop("params", {})
    chex.assert_trees_all_close(jax.tree.map(tau_of, params), {
        "logit_decay" + ending: jnp.full(N, tau) for ending, tau in asked(function).items()
    } if learn else {}, rtol=1e-6)  # fmt: skip
    params = jax.tree.map(lambda p: p + 0.3 * jnp.arange(N), params)  # other taus for every channel
    variables = {"params": params, "membrane": variables["membrane"]}
    ys, changed = outputs_of(layer, variables, XS, FIRING_RATE)
    learned = lambda ending, tau: tau_of(params["logit_decay" + ending])[None] if learn else tau
    end, expected = jax.jit(lambda xs: function(xs, learned))(XS)
    chex.assert_trees_all_close(ys, expected, atol=1e-6)
    by_name = dict(zip(names, end if isinstance(end, tuple) else (end,), strict=True))
    chex.assert_trees_all_close(changed["membrane"], by_name, atol=1e-5)
    if not layer.spikes:
        assert FIRING_RATE not in changed
    else:
        assert 0.05 < ys.mean() < 0.6
        chex.assert_trees_all_close(changed[FIRING_RATE]["rate"], ys.mean(2))


def asked(function):
    """The time constants that a function asks for, by the ending of their parameter."""
    found = {}
    function(XS[:1], lambda ending, tau: found.setdefault(ending, tau))
    return found


def test_time_constants_that_differ_from_the_start():
    layer, xs = ALIF(NEURON, 7.0, learn_tau=True, tau_spread=0.5), jnp.zeros((1, 2, 400))
    params = init(layer, xs)["params"]
    logs = {name: np.log(tau_of(p) - 1) for name, p in params.items()}
    for name, tau in (("logit_decay", 3.0), ("logit_decay_a", 7.0)):
        np.testing.assert_allclose((logs[name].mean(), logs[name].std()), (np.log(tau - 1), 0.5), atol=0.08)
    assert not np.allclose(logs["logit_decay"] - np.log(2), logs["logit_decay_a"] - np.log(6))


def test_neurons_rest_at_their_reset():
    layer = ALIF(Neuron(v_reset=-0.5))
    state = init(layer, XS)["membrane"]
    chex.assert_trees_all_equal(state, {"v": ZERO - 0.5, "a": ZERO, "s": ZERO})


def test_lateral_weights():
    layer = Recurrent(LIF(NEURON))
    variables = init(layer, XS)
    w = variables["params"]["kernel"]
    np.testing.assert_allclose(w @ w.T, np.eye(N), atol=1e-5)
    ys, changed = outputs_of(layer, variables, XS)
    (v, s), expected = over_time(recurrent(lif_step))((ZERO, ZERO), XS, w, NEURON)
    chex.assert_trees_all_close(ys, expected)
    chex.assert_trees_all_close(changed["membrane"]["cell"], {"v": v, "y": s}, atol=1e-6)
    assert not np.array_equal(ys, lif(ZERO, XS, NEURON)[1])
    with pytest.raises(
        ValueError, match=r"lateral weights need currents \[T, B, n\], got shape \(5, 3, 6, 1\)"
    ):
        init(layer, XS[..., None])


def test_half_precision_keeps_states_in_float32():
    layer = Recurrent(ALIF(NEURON, learn_tau=True))
    variables = init(layer, XS.astype(jnp.bfloat16))
    ys, _ = outputs_of(layer, variables, XS.astype(jnp.bfloat16))
    assert ys.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


SLOW = Neuron(tau=5.0, v_threshold=0.2)
NETS = {
    "alif": RecurrentNet((8,), 4, neuron=SLOW, tau_a=10.0),
    "synaptic": RecurrentNet((8,), 4, "synaptic", neuron=SLOW, readout="lif"),
    "plain lif": RecurrentNet((8,), 4, "lif", recurrent=False, neuron=SLOW, learn_tau=False),
}


@pytest.mark.parametrize(
    "name", ["alif", *(pytest.param(name, marks=pytest.mark.slow) for name in ("synaptic", "plain lif"))]
)
def test_recurrent_networks(name, x64):
    """Every parameter has a gradient, chunks agree, and sltt is not bptt."""
    model = NETS[name]
    xs = jnp.asarray(rng.normal(size=(8, B, 5)))
    params, state = functional.init(model, jax.random.key(1, impl="rbg"), xs[0])
    params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
    target = jnp.ones((B, 4))

    def gradient(rule):
        f = jax.jit(rule.value_and_grad(functional.applier(model), squared_error))
        return f(params, state, xs, target)[1]

    cut, exact = gradient(sltt()), gradient(bptt())
    assert_close(gradient(sltt(3)), cut)
    assert max(difference(cut, exact).values()) > 0.05
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(exact))
    learned = [path for path, _ in jax.tree_util.tree_leaves_with_path(params) if "logit_decay" in str(path)]
    assert len(learned) == {"alif": 3, "synaptic": 3, "plain lif": 0}[name]
    assert ("Recurrent_0" in params) == model.recurrent


def test_a_readout_that_averages_is_as_large_at_any_time_constant():
    plain = RecurrentNet((8,), 4, neuron=SLOW, tau_readout=50.0, learn_tau=False)
    xs = jnp.asarray(rng.normal(size=(8, B, 5)), jnp.float32)
    params, state = functional.init(plain, jax.random.key(1, impl="rbg"), xs[0])
    outputs = lambda model, xs: functional.applier(model)(params, state, xs, temporal_gradient=True)[0]
    models = plain, plain.clone(decay_readout=True)
    sums, averages = jax.jit(lambda xs: [outputs(model, xs) for model in models])(xs)
    chex.assert_trees_all_close(averages, sums / 50, rtol=1e-5)
    assert jnp.abs(sums).max() > 0.1


def test_what_a_recurrent_network_refuses():
    for wrong, message in (
        ({"cell": "gru"}, "cell must be one of .*'gru'"),
        ({"readout": "x"}, "readout one of"),
    ):
        with pytest.raises(ValueError, match=message):
            functional.init(RecurrentNet((4,), 2, **wrong), jax.random.key(0), jnp.zeros((2, 3)))


@pytest.mark.slow
def test_traces_and_activity():
    """States and spikes after every step, and the operations of the lateral weights."""
    model = NETS["alif"]
    xs = jnp.asarray(rng.normal(size=(T, B, 5)), jnp.float32)
    params, state = functional.init(model, jax.random.key(1, impl="rbg"), xs[0])
    seen = recording.layer_traces(model, params, state, xs)
    names = {path: "".join(sorted(values.keys() - {"outputs"})) for path, values in seen.items()}
    assert names == {"ALIF_0": "asvy", "LI_0": "v"}
    outputs, end = run(functional.applier(model, train=False), params, state, xs)
    chex.assert_trees_all_close(seen["LI_0"]["v"], outputs, atol=1e-6)
    chex.assert_trees_all_equal(seen["ALIF_0"]["outputs"], seen["ALIF_0"]["s"])
    last = {path: {k: v[-1] for k, v in values.items() if k != "outputs"} for path, values in seen.items()}
    chex.assert_trees_all_close(last, end["membrane"], atol=1e-6)
    found = activity.activity(model, params, state, xs)
    spikes = seen["ALIF_0"]["s"]
    np.testing.assert_allclose(found.weights["Recurrent_0"].operations, 8 * spikes.sum(-1).mean(1))
    assert found.weights["Recurrent_0"].macs == 64 and not found.weights["Recurrent_0"].analogue
    np.testing.assert_allclose(found.rates["ALIF_0"], spikes.mean((1, 2)), rtol=1e-6)
    signals = recording.layer_error_signals(model, sltt(), squared_error)(params, state, xs, jnp.ones((B, 4)))
    assert signals.keys() == seen.keys() and all(x.any() for x in signals.values())
    assert not recording.layer_temporal_factors(MixedNet(), {}, {"membrane": {
        "LIF_0": {"v": ZERO}, "LIF_1": {"v": ZERO, "y": ZERO}}}, XS).keys() - {"LIF_0"}  # fmt: skip


class MixedNet(nn.Module):
    """Without parameters but the lateral weights, which have no diagonal Jacobian."""

    @nn.compact
    def __call__(self, xs, *, train, temporal_gradient):
        xs = LIF(NEURON)(xs, temporal_gradient=temporal_gradient)
        return LIF(NEURON)(xs, temporal_gradient=temporal_gradient, lateral=0.1 * jnp.eye(N))
