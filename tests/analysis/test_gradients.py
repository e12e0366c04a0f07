"""The agreement of gradients, checked on two steps of two weights that are worked out by hand."""

import math
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import Neuron, Repeat, bptt, functional, lif, sltt, sltt_k, tbptt
from sltt_jax import analysis as agree
from sltt_jax.analysis.recording import layer_error_signals
from sltt_jax.layers import LIF
from tests.common import nets

pytestmark = pytest.mark.usefixtures("quick_compile")

RULES = {"bptt": bptt(chunk=3), "tbptt": tbptt(2), "sltt": sltt(), "sltt_k": sltt_k(2)}


class TestTwoSteps:
    """One neuron of two inputs, tau = 2, and one weight behind it; x[0] = (1, 0), x[1] = (0, 1).

        w = (0.25, 1), w2 = 2: u[0] = 0.25, s[0] = 0; u[1] = 0.125 + 1 = 1.125, s[1] = 1
        outputs 0 and 2, wanted 0.5: dL/do = -0.5 and 1.5, each halved by the mean over time
        surrogate'(u) = 1 - |u - 1| = 0.25 and 0.875
        delta[0] = -0.25 * 2 * 0.25 = -0.125; delta[1] = 0.75 * 2 * 0.875 = 1.3125
        du[1]/du[0] = 0.5 (1 - 0.25) = 0.375

    SLTT: dw = (-0.125, 1.3125), dw2 = 0.75. BPTT: dw[0] = -0.125 + 0.375 * 1.3125 = 0.3671875, else the same.
    """

    params: Any = {"neuron": {"w": jnp.asarray([0.25, 1.0])}, "readout": jnp.asarray(2.0)}  # noqa: RUF012
    inputs = jnp.asarray([[[1.0, 0.0]], [[0.0, 1.0]]])
    exact: Any = {"neuron": {"w": jnp.asarray([0.3671875, 1.3125])}, "readout": jnp.asarray(0.75)}  # noqa: RUF012

    @staticmethod
    def apply(params, v, xs, *, temporal_gradient):
        v, s = lif(v, xs @ params["neuron"]["w"], Neuron(tau=2.0), temporal_gradient=temporal_gradient)
        return params["readout"] * s, v

    def measure(self, build, rules):
        loss = lambda output, target: jnp.mean((output - target) ** 2) / 2
        return jax.jit(build(rules, self.apply, loss))(self.params, jnp.zeros(1), self.inputs, 0.5)

    def test_gradients(self):
        reports = self.measure(agree.agreement, {"sltt": sltt(), "tbptt": tbptt(2), "last": sltt_k(1, (1,))})
        r = reports["sltt"]
        assert set(r.layers) == {"neuron", "readout"} and set(r.parameters) == {"neuron/w", "readout"}
        dot, a, b = -0.125 * 0.3671875 + 1.3125**2, math.hypot(-0.125, 1.3125), math.hypot(0.3671875, 1.3125)
        expected = (dot / (a * b), 0.4921875 / b, 1 / 2, b)
        np.testing.assert_allclose(r.layers["neuron"], expected, rtol=1e-6)
        np.testing.assert_allclose(r.parameters["neuron/w"], expected, rtol=1e-6)
        np.testing.assert_allclose(r.layers["readout"], (1, 0, 1, 0.75), rtol=1e-6)
        a, b = math.hypot(a, 0.75), math.hypot(b, 0.75)
        expected = ((dot + 0.75**2) / (a * b), 0.4921875 / b, 2 / 3, b)
        np.testing.assert_allclose(r.overall, expected, rtol=1e-6)
        np.testing.assert_allclose(reports["tbptt"].overall, (1, 0, 1, b), atol=1e-6)
        # The gradient of the last step alone: (0, 1.3125) and 0.75.
        norm = math.hypot(1.3125, 0.75)
        expected = (norm / b, 0.3671875 / b, 2 / 3, b)
        np.testing.assert_allclose(reports["last"].overall, expected, rtol=1e-6)

    def test_steps(self):
        """Step 0: SLTT has (-0.125, 0), BPTT (0.3671875, 0): opposite. Nothing goes through the weight
        behind. Step 1: both have (0, 1.3125) and 0.75."""
        r = self.measure(agree.step_agreement, {"sltt": sltt()})["sltt"]
        b = [0.3671875, math.hypot(1.3125, 0.75)]
        np.testing.assert_allclose(r.overall.cosine, [-1, 1], rtol=1e-6)
        np.testing.assert_allclose(r.overall.relative_error, [0.4921875 / 0.3671875, 0], rtol=1e-6)
        np.testing.assert_allclose(r.overall.sign_agreement, [0, 1], rtol=1e-6)
        np.testing.assert_allclose(r.overall.norm, b, rtol=1e-6)
        np.testing.assert_allclose(r.layers["readout"].cosine, [np.nan, 1], rtol=1e-6)
        np.testing.assert_allclose(r.layers["readout"].norm, [0, 0.75], rtol=1e-6)

    @pytest.mark.slow
    def test_error_signals(self):
        """delta = (-0.125, 1.3125) under SLTT; under BPTT delta[0] is 0.3671875."""

        class Neurons(nn.Module):
            @nn.compact
            def __call__(self, xs, *, train, temporal_gradient):
                u = nn.Dense(1, use_bias=False, name="w")(xs)
                spikes = LIF(Neuron(tau=2.0), name="lif")(u, temporal_gradient=temporal_gradient)
                return nn.Dense(1, use_bias=False, name="readout")(spikes)

        model = Neurons()
        _, state = functional.init(model, jax.random.key(0, impl="rbg"), self.inputs[0])
        params = {"w": {"kernel": jnp.asarray([[0.25], [1.0]])}, "readout": {"kernel": jnp.full((1, 1), 2.0)}}
        loss = lambda output, target: jnp.mean((output - target) ** 2) / 2
        found = {
            rule: jax.jit(layer_error_signals(model, rule, loss))(params, state, self.inputs, 0.5)
            for rule in (sltt(), bptt(), sltt_k(1, draw="last"))
        }
        for rule, expected in zip(found, ([-0.125, 1.3125], [0.3671875, 1.3125], [0, 1.3125]), strict=True):
            assert set(found[rule]) == {"lif"} and found[rule]["lif"].shape == (2, 1, 1)
            np.testing.assert_allclose(found[rule]["lif"].ravel(), expected, rtol=1e-6)
        compared = jax.vmap(agree.report)(found[sltt()], found[bptt()])
        np.testing.assert_allclose(compared.layers["lif"].cosine, [-1, 1], rtol=1e-6)


class TestCompare:
    def test_two_vectors(self):
        a, b = (
            {"x": jnp.asarray([3.0, -1.0]), "y": jnp.asarray(0.0)},
            {"x": jnp.asarray([4.0, 0.0]), "y": -3.0},
        )
        got = agree.compare(a, b)
        expected = (12 / (math.sqrt(10) * 5), math.sqrt(1 + 1 + 9) / 5, 1 / 2, 5)
        np.testing.assert_allclose(got, expected, rtol=1e-6)

    @pytest.mark.parametrize(
        ("tree", "layers"),
        [
            ([(1, 2), (3, 4)], {"0": (1, 2), "1": (3, 4)}),
            ((1, 2), {"0": (1,), "1": (2,)}),
            ({"in": {"w": 1, "b": 2}, "out": (3, 4)}, {"in": (2, 1), "out": (3, 4)}),
            ({"net": {"hidden": [{"w": 1}, {"w": 2}]}, "out": 3}, None),
            ({"net": {"hidden": {0: {"w": 1}, 1: {"w": 2}}}, "out": 3}, None),
        ],
    )
    def test_layers(self, tree, layers):
        layers = layers or {"net/hidden/0": (1,), "net/hidden/1": (2,), "out": (3,)}
        tree = jax.tree.map(float, tree)
        found = agree.report(tree, tree).layers
        assert set(found) == set(layers)
        for name, numbers in layers.items():
            np.testing.assert_allclose(found[name].norm, math.hypot(*numbers), rtol=1e-6)

    def test_scale_is_error_and_not_angle(self):
        b = {"w": jnp.asarray([1.0, -2.0, 0.5])}
        for scale, cosine, sign in ((1, 1, 1), (3, 1, 1), (-1, -1, 0)):
            got = agree.compare(jax.tree.map(lambda x, scale=scale: scale * x, b), b)
            np.testing.assert_allclose(got[:3], (cosine, abs(scale - 1), sign), rtol=1e-6)

    def test_zeros(self):
        zero, some = jnp.zeros(3), jnp.asarray([1.0, 0.0, 2.0])
        np.testing.assert_allclose(agree.compare(zero, some), (0, 1, 0, math.sqrt(5)), rtol=1e-6)
        for gradient in (zero, some):
            np.testing.assert_array_equal(agree.compare(gradient, zero), (np.nan, np.nan, np.nan, 0))

    def test_other_shapes(self):
        with pytest.raises(ValueError, match=r"different shapes, .*\(2,\).* and .*\(3,\)"):
            agree.compare({"w": jnp.ones(2)}, {"w": jnp.ones(3)})
        with pytest.raises(ValueError, match="different shapes"):
            agree.report({"w": jnp.ones(2)}, {"v": jnp.ones(2)})


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["two_matrices", "convnet"],
)
def test_steps_add_up_to_the_gradient(name, x64):
    """For every rule, and each against BPTT: what is the same and what is not."""
    n = nets.net(name)
    args = n.params, n.state, n.inputs, n.target, jax.random.key(nets.KEY)
    steps = {rule: jax.jit(agree.step_gradients(r, n.apply, n.step_loss))(*args) for rule, r in RULES.items()}
    for rule, r in RULES.items():
        total = jax.tree.map(lambda g: g.sum(0), steps[rule])
        nets.assert_close(total, nets.gradient(name, r)[1])
    compare = jax.jit(jax.vmap(agree.report))
    reports = {rule: compare(g, steps["bptt"]) for rule, g in steps.items()}
    cosine = {rule: np.asarray(r.overall.cosine) for rule, r in reports.items()}
    np.testing.assert_allclose(cosine["bptt"], 1, rtol=1e-12)
    for rule, exact in (("sltt", 1), ("tbptt", 2)):  # the last window holds all that follows
        np.testing.assert_allclose(cosine[rule][-exact:], 1, rtol=1e-12)
        assert (cosine[rule][:-exact] < 0.9999).all()
    chosen = np.asarray(RULES["sltt_k"].selected(nets.T, jax.random.key(nets.KEY)))
    np.testing.assert_array_equal(np.asarray(reports["sltt_k"].overall.cosine) == 0, ~chosen)
    np.testing.assert_allclose(cosine["sltt_k"][chosen], cosine["sltt"][chosen], rtol=1e-12)


@pytest.mark.slow
def test_error_signals_are_the_gradients_of_the_biases(x64):
    """Without batch normalisation, summed over the batch: of two layers, at every step, under both rules."""
    n = nets.net("mlp")
    for rule in (bptt(), sltt()):
        signals = jax.jit(layer_error_signals(nets.MODELS["mlp"], rule, n.step_loss))
        steps = jax.jit(agree.step_gradients(rule, n.apply, n.step_loss))
        args = n.params, n.state, n.inputs, n.target
        found, expected = signals(*args), steps(*args)
        for layer in ("0", "1"):
            total = found[f"LIF_{layer}"].sum(1)
            np.testing.assert_allclose(total, expected[f"Dense_{layer}"]["bias"], rtol=1e-10, atol=1e-14)
            assert np.abs(total).min(1).max() > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("build", [agree.agreement, agree.step_agreement])
def test_a_repeated_input(x64, build):
    n = nets.net("two_matrices")
    x = n.inputs[0]
    f = jax.jit(build({"sltt": sltt()}, n.apply, n.step_loss))
    a, b = (f(n.params, n.state, inputs, n.target) for inputs in (Repeat(x, 4), jnp.stack([x] * 4)))
    chex.assert_trees_all_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_the_same_rule(x64):
    """SLTT agrees with itself; against BPTT it is between nothing and all, in every layer but the readout."""
    n = nets.net("mlp")
    rules = {"sltt": sltt(), "chunk": sltt(chunk=2), "bptt": bptt()}
    f = jax.jit(agree.agreement(rules, n.apply, n.step_loss))
    r = f(n.params, n.state, n.inputs[:4], n.target)
    chex.assert_trees_all_close(r["sltt"], r["chunk"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(r["bptt"].overall[:3], (1, 0, 1), atol=1e-12)
    assert set(r["sltt"].layers) == {"Dense_0", "Dense_1", "Dense_2"}
    for layer in ("Dense_0", "Dense_1"):
        cosine, error, sign, norm = r["sltt"].layers[layer]
        assert 0.2 < cosine < 0.9999 and 0.02 < error < 1.5 and 0.5 < sign < 0.999 and norm > 1e-3
    np.testing.assert_allclose(r["sltt"].layers["Dense_2"][:3], (1, 0, 1), atol=1e-12)
    a, b = (nets.gradient("mlp", rule)[1] for rule in (sltt(), sltt(chunk=4)))
    np.testing.assert_allclose(agree.compare(a, b)[:3], (1, 0, 1), atol=1e-12)
