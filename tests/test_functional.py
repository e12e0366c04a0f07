"""Modules of Flax NNX and Equinox as pure functions, against the same network written out by hand."""

import sys

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sltt_jax import Neuron, bptt, functional, lif_step, losses, run, sltt, sltt_k, tbptt
from sltt_jax.analysis import agreement, check_apply

T, B, UNITS = 6, 8, 16
NEURON = Neuron(tau=2.0)
KEY = jax.random.key(0)
X = 2 * jax.random.normal(KEY, (T, B, 4))
Y = jnp.arange(B) % 3
AT_REST = jnp.zeros((B, UNITS)), jnp.zeros((B, UNITS))


class NNXNet(nnx.Module):
    """A layer with batch normalisation and lateral weights, whose state is the membranes and last spikes."""

    def __init__(self, rngs, dropout=0.0):
        self.layers = nnx.List([nnx.Linear(4, UNITS, rngs=rngs), nnx.Linear(UNITS, UNITS, rngs=rngs)])
        self.norm = nnx.BatchNorm(UNITS, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.readout = nnx.Linear(UNITS, 3, rngs=rngs)

    def __call__(self, state, x):
        v, s = state
        current, lateral = self.layers
        v, s = lif_step(v, self.norm(current(x)) + lateral(s), NEURON)
        return (v, s), self.readout(self.dropout(s))


class EquinoxNet(eqx.Module):
    """The same without batch normalisation."""

    layers: list
    readout: eqx.nn.Linear

    def __init__(self, key):
        a, b, c = jax.random.split(key, 3)
        self.layers = [eqx.nn.Linear(4, UNITS, key=a), eqx.nn.Linear(UNITS, UNITS, key=b)]
        self.readout = eqx.nn.Linear(UNITS, 3, key=c)

    def __call__(self, state, x):
        v, s = state
        current, lateral = map(jax.vmap, self.layers)
        v, s = lif_step(v, 4 * current(x) + lateral(s), NEURON)
        return (v, s), jax.vmap(self.readout)(s)


def by_hand(currents):
    """Builds an `apply` of params `[(w, b), (w, b), (w, b)]`, step by step, with every cut written out."""

    def apply(params, state, xs, *, temporal_gradient):
        _, (lateral, c), (readout, d) = params
        (v, s), outputs = state, []
        for x in xs:
            if not temporal_gradient:
                v, s = jax.lax.stop_gradient((v, s))
            v, s = lif_step(v, currents(params, x) + s @ lateral + c[None], NEURON)
            outputs.append(s @ readout + d[None])
        return jnp.stack(outputs), (v, s)

    return apply


def gradient(rule, apply, params, state):
    return jax.jit(rule.value_and_grad(apply, losses.cross_entropy))(params, state, X, Y, KEY)


pytestmark = pytest.mark.usefixtures("quick_compile")

SLOW = (pytest.param(rule, marks=pytest.mark.slow) for rule in (bptt(), bptt(3), tbptt(2), sltt(), sltt_k(2)))
RULES = sltt(4), *SLOW


@pytest.fixture(scope="module")
def of_nnx():
    model = NNXNet(nnx.Rngs(0))
    return model, *functional.from_nnx(model)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_nnx(of_nnx, rule):
    model, apply, params, rest = of_nnx

    def normalised(params, x):
        (w, b), *_ = params
        x = x @ w + b[None]
        return (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-5)

    tree = lambda p: [(layer.kernel[...], layer.bias[...]) for layer in (*p.layers.values(), p.readout)]
    (loss, aux), grads = gradient(rule, apply, params, (AT_REST, rest))
    (expected, _), hand = gradient(rule, by_hand(normalised), tree(params), AT_REST)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    chex.assert_trees_all_close(tree(grads), hand, rtol=1e-4, atol=1e-6)
    # The running mean of the batches of all steps, the last with a share of 0.1.
    means = (X @ model.layers[0].kernel[...]).mean(1)
    mean = 0.0
    for m in means:
        mean = 0.9 * mean + 0.1 * m
    np.testing.assert_allclose(aux.state[1].norm.mean[...], mean, rtol=1e-4, atol=1e-6)
    assert (model.norm.mean[...] == 0).all()


def test_nnx_after_eval(of_nnx):
    """Other programs of the same parameters and state, without the statistics of the batch."""
    _, apply, params, rest = of_nnx
    model = NNXNet(nnx.Rngs(0))
    model.eval()
    evaluate, same, _ = functional.from_nnx(model)
    chex.assert_trees_all_equal(params, same)
    outputs, (_, after) = run(evaluate, params, (AT_REST, rest), X)
    chex.assert_trees_all_equal(rest, after)
    assert (outputs != run(apply, params, (AT_REST, rest), X)[0]).any()


class Gated(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.readout = nnx.Linear(4, UNITS, rngs=rngs), nnx.Linear(UNITS, 3, rngs=rngs)

    def __call__(self, v, x):
        current, gate = x
        v, s = lif_step(v, self.hidden(current) * gate, NEURON)
        return v, self.readout(s)


def test_inputs_may_be_a_tuple():
    apply, params, rest = functional.from_nnx(Gated(nnx.Rngs(0)))
    state = AT_REST[0], rest
    gates = jnp.ones((T, B, 1), jnp.uint8)
    f = lambda rule, gates: jax.jit(rule.value_and_grad(apply, losses.cross_entropy))(
        params, state, (X, gates), Y
    )
    (loss, _), grads = f(sltt(), gates)
    (of_blocks, _), same = f(sltt(4), gates)
    np.testing.assert_allclose(of_blocks, loss, rtol=1e-5)
    chex.assert_trees_all_close(same, grads, rtol=1e-4, atol=1e-6)
    assert f(sltt(), 0 * gates)[0][0] != loss


@pytest.mark.slow
def test_nnx_with_dropout():
    """The keys go from step to step, and every block draws what its steps do."""
    apply, params, rest = functional.from_nnx(NNXNet(nnx.Rngs(0), dropout=0.5))
    state = AT_REST, rest
    check_apply(apply, params, state, X)
    same = jnp.broadcast_to(X[0], X.shape)
    outputs = run(apply, params, (AT_REST, rest), same)[0]
    assert len(np.unique(np.asarray(outputs).round(4), axis=0)) == T


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_equinox(rule):
    apply, params = functional.from_equinox(EquinoxNet(KEY))
    tree = lambda p: [(layer.weight.T, layer.bias) for layer in (*p.layers, p.readout)]
    found = gradient(rule, apply, params, AT_REST)
    currents = lambda params, x: 4 * (x @ params[0][0] + params[0][1][None])
    hand = gradient(rule, by_hand(currents), tree(params), AT_REST)
    np.testing.assert_allclose(found[0][0], hand[0][0], rtol=1e-5)
    chex.assert_trees_all_close(tree(found[1]), hand[1], rtol=1e-4, atol=1e-6)
    assert all(jnp.abs(g).max() > 1e-4 for g in jax.tree.leaves(found[1]))
    chex.assert_trees_all_close(
        eqx.combine(params, EquinoxNet(jax.random.key(1)))(AT_REST, X[0])[1],
        run(apply, params, AT_REST, X)[0][0],
    )


def test_counts_become_float32(of_nnx):
    _, apply, params, rest = of_nnx
    counts = jnp.clip(X + 3, 0, 9).astype(jnp.uint8)
    outputs, _ = run(apply, params, (AT_REST, rest), counts)
    chex.assert_trees_all_equal(outputs, run(apply, params, (AT_REST, rest), counts.astype(jnp.float32))[0])


@pytest.mark.slow
def test_layers_of_both_have_names(of_nnx):
    _, apply, params, rest = of_nnx
    rules = {"sltt": sltt()}
    report = jax.jit(agreement(rules, apply, losses.cross_entropy))(params, (AT_REST, rest), X, Y)["sltt"]
    assert set(report.layers) == {"layers/0", "layers/1", "norm", "readout"}
    apply, params = functional.from_equinox(EquinoxNet(KEY))
    report = jax.jit(agreement(rules, apply, losses.cross_entropy))(params, AT_REST, X, Y)["sltt"]
    assert set(report.layers) == {"layers/0", "layers/1", "readout"}
    assert report.layers["layers/1"].cosine < 0.999 and report.layers["readout"].cosine > 0.999


def test_equinox_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "equinox", None)
    with pytest.raises(ModuleNotFoundError, match="pip install equinox"):
        functional.from_equinox(None)
