from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import Neuron, Repeat, functional
from sltt_jax.analysis import activity
from sltt_jax.analysis.flop_count import flops
from sltt_jax.analysis.recording import layer_temporal_factors, record
from sltt_jax.analysis.temporal_part import temporal_factors
from sltt_jax.blocks import run
from sltt_jax.layers import FIRING_RATE, LIF, ScaledWSConv
from sltt_jax.models import MLP, ConvNet
from sltt_jax.models.nf_resnet import NFResNet
from sltt_jax.models.resnet import ResNet

pytestmark = pytest.mark.usefixtures("quick_compile")


class Chain(nn.Module):
    """Dense - LIF - Dense - LIF - Dense with given weights: what it does can be worked out by hand."""

    @nn.compact
    def __call__(self, xs, *, train, temporal_gradient):
        for n in (3, 2):
            xs = LIF(Neuron(tau=2.0))(nn.Dense(n, use_bias=False)(xs), temporal_gradient=temporal_gradient)
        return nn.Dense(4, use_bias=False)(xs)


def chain():
    """Its parameters and state, and 2 steps of 2 samples of one input."""
    inputs = jnp.asarray([[[1.0], [0.5]], [[1.0], [0.0]]])
    params, state = functional.init(Chain(), jax.random.key(0, impl="rbg"), inputs[0])
    params["Dense_0"]["kernel"] = jnp.asarray([[0.8, 2.0, 0.0]])
    params["Dense_1"]["kernel"] = jnp.asarray([[1.0, 0.0], [0.2, 3.0], [0.0, 0.0]])
    return params, state, inputs


def test_a_network_worked_out_by_hand():
    """Sample 0: neuron 0 has u = 0.8, then 0.4 + 0.8, and spikes at step 1; neuron 1 has u = 2, then
    0.5 + 2, and spikes at both. Sample 1: neuron 0 has 0.4, then 0.2; neuron 1 has 1, then 0, and spikes at
    step 0. Neuron 2 has no input.

    Layer 2: neuron 0 gets 0.2 at step 0, and at step 1 of sample 0 0.1 + 1.2, a spike; neuron 1 gets 3 with
    every spike of neuron 1.
    """
    params, state, inputs = chain()
    measure = jax.jit(lambda *args: activity.activity(Chain(), *args))
    a = measure(params, state, inputs)
    assert list(a.rates) == ["LIF_0", "LIF_1"]
    np.testing.assert_allclose(a.rates["LIF_0"], [2 / 6, 2 / 6], rtol=1e-6)
    # At step 1 neuron 1 of sample 1 has (3 - 1) / 2 left, and spikes without an input.
    np.testing.assert_allclose(a.rates["LIF_1"], [2 / 4, 3 / 4], rtol=1e-6)
    np.testing.assert_allclose(a.neurons["LIF_0"], [1 / 4, 3 / 4, 0], rtol=1e-6)
    np.testing.assert_allclose(a.neurons["LIF_1"], [1 / 4, 1], rtol=1e-6)
    weights = {
        name: (float(w.macs), w.operations.tolist(), bool(w.analogue)) for name, w in a.weights.items()
    }
    assert weights == {
        "Dense_0": (3, [3.0, 1.5], True),  # 2 and 1 inputs are there, of 2 samples
        "Dense_1": (6, [2.0, 2.0], False),  # 2 spikes a step, each to 2 neurons
        "Dense_2": (8, [4.0, 6.0], False),  # 2 and 3 spikes, each to 4
    }
    e = activity.energy(a)
    assert (e.synaptic_operations, e.analogue_macs, e.ann_macs) == (14, 6, 17)
    assert e.joules == pytest.approx(14 * 0.9e-12 + 6 * 4.6e-12)
    assert e.ann_joules == pytest.approx(17 * 4.6e-12)
    assert activity.problems(a) == []

    # A first layer that is given spikes does additions, and only those.
    spikes = measure(params, state, jnp.round(inputs + 0.1))
    assert not spikes.weights["Dense_0"].analogue
    assert spikes.weights["Dense_0"].operations.tolist() == [3.0, 1.5]
    assert activity.energy(spikes).analogue_macs == 0


@pytest.mark.slow
def test_rates_are_those_that_the_layers_record():
    model = ConvNet(features=(4, 6), classes=3, dropout=0.2)
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8, 8, 8, 2)), jnp.float32)
    params, state = functional.init(model, jax.random.key(1, impl="rbg"), inputs[0])
    measure = lambda model: jax.jit(partial(activity.activity, model, train=True))
    a = measure(model)(params, state, inputs, key=jax.random.key(2))
    apply = functional.applier(model, key=jax.random.key(2), record=(FIRING_RATE,))
    (_, recorded), _ = jax.jit(partial(run, apply))(params, state, inputs)
    for name, rates in recorded[FIRING_RATE].items():
        np.testing.assert_allclose(a.rates[name], rates["rate"].mean(1), rtol=1e-6)
        np.testing.assert_allclose(a.neurons[name].mean(), a.rates[name].mean(), rtol=1e-6)
        assert 0.05 < a.rates[name].mean() < 0.6
    assert a.neurons["LIF_0"].shape == (8, 8, 4)
    # The mask takes spikes away, and the operations with them.
    plain = measure(model.clone(dropout=0.0))(params, state, inputs)
    np.testing.assert_allclose(plain.rates["LIF_0"], a.rates["LIF_0"], rtol=1e-6)
    assert 0 < a.weights["Dense_0"].operations.sum() < plain.weights["Dense_0"].operations.sum()


LAYERS = {
    "dense": (nn.Dense(3), (4,)),
    "dense on maps": (nn.Dense(3), (4, 5, 2)),
    "same, stride": (nn.Conv(3, (3, 3), 2), (5, 6, 2)),
    "border": (nn.Conv(2, (3, 5), padding=((1, 0), 2)), (6, 5, 1)),
    "groups": (nn.Conv(4, (2, 2), padding="VALID", feature_group_count=2), (4, 4, 6)),
    "dilation": (nn.Conv(2, (3, 3), kernel_dilation=2, padding=2), (6, 6, 1)),
    "one axis": (nn.Conv(2, 3, padding=1), (7, 2)),
    "standardised": (ScaledWSConv(4, (3, 3), 2, 1), (5, 5, 3)),
}


@pytest.mark.parametrize(("layer", "shape"), LAYERS.values(), ids=LAYERS)
def test_operations_are_the_connections_of_the_inputs(layer, shape):
    """Counted as the entries of the Jacobian that are not 0: each is one weight between input and output."""
    rng = np.random.default_rng(0)
    there = rng.binomial(1, 0.4, (3, 2, *shape)).astype(np.float32)
    x = there[:1, :1]
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    params = jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), shapes)
    jacobian = jax.jit(jax.jacobian(lambda x: layer.apply(params, x).ravel()))
    fan_out = (np.abs(jacobian(x)) > 1e-7).sum(0)[0, 0]
    expected = (there * fan_out).sum(tuple(range(2, there.ndim)))
    count = jax.jit(lambda there: activity.operations(layer, there))
    np.testing.assert_array_equal(count(there), expected)
    everything = count(np.ones_like(there))
    np.testing.assert_array_equal(everything, np.full((3, 2), fan_out.sum()))
    assert 0 < expected.sum() < everything.sum()


@pytest.mark.parametrize("name", ["dense on maps", "same, stride", "groups"])
def test_weights_that_are_not_there_take_no_operation(name):
    layer, shape = LAYERS[name]
    rng = np.random.default_rng(0)
    there = jnp.asarray(rng.binomial(1, 0.4, (3, 2, *shape)), jnp.float32)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), there)
    mask = jnp.asarray(rng.binomial(1, 0.5, shapes["params"]["kernel"].shape), jnp.float32)
    # Each output is the number of weights that reach it.
    counted = layer.apply({"params": {"kernel": mask, "bias": jnp.zeros(layer.features)}}, there)
    expected = counted.sum(range(2, counted.ndim))
    found = activity.operations(layer, there, mask)
    np.testing.assert_array_equal(found, expected)
    assert (0 < found).all() and (found < activity.operations(layer, there)).all()  # the control
    everything = activity.operations(layer, there, jnp.ones_like(mask))
    np.testing.assert_array_equal(everything, activity.operations(layer, there))


class TestModels:
    def shapes(self, model, shape):
        """What `activity` returns, without running it, the parameters and the state."""

        def f():
            x = jnp.ones((2, *shape))
            params, state = functional.init(model, jax.random.key(0, impl="rbg"), x)
            return activity.activity(model, params, state, Repeat(x, 3), train=True), params, state

        return jax.eval_shape(f)

    @pytest.mark.parametrize(
        ("model", "shape"),
        [
            (MLP((6, 5), 3), (4,)),
            (ConvNet((3, 4), 3), (8, 8, 2)),
            (ResNet((1,), 3, width=1 / 16), (4, 4, 3)),
            (NFResNet((1,), True, 3, width=1 / 16), (8, 8, 3)),
        ],
        ids=["mlp", "convnet", "resnet", "nf_resnet"],
    )
    def test_every_kernel_and_every_neuron_is_counted(self, model, shape):
        a, params, state = self.shapes(model, shape)
        paths = (path for path, _ in jax.tree_util.tree_leaves_with_path(params))
        names = ["/".join(k.key for k in path) for path in paths]
        assert set(a.weights) == {n.removesuffix("/kernel") for n in names if n.endswith("kernel")}
        assert all(w.operations.shape == (3,) for w in a.weights.values())
        membranes = jax.tree_util.tree_leaves_with_path(state["membrane"])
        assert {k: v.shape for k, v in a.neurons.items()} == {
            "/".join(k.key for k in path[:-1]): v.shape[1:] for path, v in membranes
        }

    def test_macs_are_the_multiplications_of_the_forward_pass(self):
        model = MLP((24, 20), 5)
        x = jnp.ones((1, 7))
        shapes = jax.eval_shape(partial(functional.init, model), jax.random.key(0), x)
        params, state = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
        measured = jax.jit(partial(activity.activity, model))(params, state, Repeat(x, 1))
        forward = jax.jit(lambda p: functional.applier(model)(p, state, x[None], temporal_gradient=False)[0])
        assert 2 * activity.energy(measured).ann_macs == flops(forward.trace(params))


class TestProblems:
    def problems(self, **neurons):
        return activity.problems(activity.Activity({}, {k: jnp.asarray(v) for k, v in neurons.items()}, {}))

    def test_words(self):
        assert self.problems(a=[0.0, 0.1, 0.0, 0.0], b=[0.2, 0.0, 0.0, 1.0], c=[1.0, 1.0, 0.9], d=[0.0]) == [
            "a: 75 % of the neurons are dead, they never spike",
            "c: 67 % of the neurons are saturated, they always spike",
            "d is silent: no neuron spikes, so the weights after it get no gradient",
        ]

    def test_a_channel_is_dead_if_it_is_so_everywhere(self):
        spot = jnp.zeros((4, 4, 3)).at[1, 2].set([0.5, 0.0, 0.0])
        assert self.problems(a=spot) == ["a: 67 % of the channels are dead, they never spike"]
        assert self.problems(a=spot.at[3, 3, 1].set(0.01)) == []

    def test_thresholds_that_are_too_high_or_too_low(self):
        x = jnp.asarray(np.random.default_rng(0).uniform(size=(16, 7)), jnp.float32)
        params, state = functional.init(MLP((24,), 5), jax.random.key(1, impl="rbg"), x)
        params["Dense_0"]["kernel"] = jnp.abs(params["Dense_0"]["kernel"])
        for threshold, word in ((50.0, "silent"), (1e-3, "saturated"), (1.5, "")):
            model = MLP((24,), 5, neuron=Neuron(v_threshold=threshold))
            measure = jax.jit(partial(activity.activity, model))
            found = activity.problems(measure(params, state, Repeat(x, 2)))
            assert len(found) == bool(word) and all(word in text for text in found)


class TestRecord:
    def test_temporal_factors_are_those_of_the_currents(self):
        """Of the second layer, whose currents are worked out by running the first alone; from a membrane."""
        params, state, inputs = chain()
        state["membrane"]["LIF_1"]["v"] = jnp.asarray([[0.3, -0.2], [0.6, 0.1]])
        factors = layer_temporal_factors(Chain(), params, state, inputs)
        spikes = record(
            Chain(), lambda: lambda m, v, xs, ys: {"s": ys} if m.name == "LIF_0" else None,
            params, state, inputs,
        )["LIF_0"]["s"]  # fmt: skip
        start = state["membrane"]["LIF_1"]["v"]
        expected = temporal_factors(start, spikes @ params["Dense_1"]["kernel"], Neuron(tau=2.0))
        np.testing.assert_allclose(factors["LIF_1"], expected, rtol=1e-6)
        assert set(factors) == {"LIF_0", "LIF_1"}
        # u = 0.15 + 0.2 and -0.1 + 3 at the first step of the first sample: 0.5 (1 - 0.35), and beyond 2.
        np.testing.assert_allclose(factors["LIF_1"][0, 0], [0.325, 0.5], rtol=1e-6)

    def test_the_network_computes_what_it_did(self):
        params, state, inputs = chain()
        seen = record(
            Chain(), lambda: lambda m, v, xs, ys: {"ys": ys} if not m.path else None, params, state, inputs
        )
        outputs, _ = run(functional.applier(Chain()), params, state, inputs)
        np.testing.assert_array_equal(seen[""]["ys"], outputs)

    def test_bad_networks(self):
        x = jnp.ones((2, 8, 8, 3))

        def measure(layer):
            class Net(nn.Module):
                @nn.compact
                def __call__(self, xs, *, train, temporal_gradient):
                    return layer(xs)

            def f():
                params, state = functional.init(Net(), jax.random.key(0), x)
                return activity.activity(Net(), params, state, Repeat(x, 2))

            return jax.eval_shape(f)

        with pytest.raises(ValueError, match="padding with zeros, got 'CIRCULAR'"):
            measure(lambda xs: nn.Conv(2, (3, 3), padding="CIRCULAR")(xs))
        with pytest.raises(ValueError, match="the operations of ConvLocal are not known"):
            measure(lambda xs: nn.ConvLocal(2, (3, 3))(xs[0])[None])
        with pytest.raises(ValueError, match="Net has none of the layers"):
            measure(lambda xs: nn.LayerNorm()(xs))
