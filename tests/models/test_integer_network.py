"""Networks in integers against a loop in NumPy, and against the float network where that is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import Neuron, functional
from sltt_jax.blocks import run
from sltt_jax.models import MLP, ConvNet, RecurrentNet
from sltt_jax.models.integer_network import integer_network
from sltt_jax.quantisation import quantise

pytestmark = pytest.mark.usefixtures("quick_compile")


def hard(tau, v_threshold=1.0):
    return Neuron(tau, v_threshold, v_reset=0.0)


def drawn(model, x, gain=1.0):
    """Parameters with biases, drawn anew, and the state."""
    shapes = jax.eval_shape(lambda: functional.init(model, jax.random.key(0), x))
    params, state = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    rng = np.random.default_rng(0)
    draw = lambda p: gain * rng.normal(0, 1 / np.sqrt(max(p[..., 0].size, 4)), p.shape).astype(np.float32)
    return jax.tree.map(draw, params), state


def test_a_network_worked_out_by_hand():
    """One input of at most 3, two neurons, one output; the scales are 1/2 and 1/4, a unit of the input 1/3.

    Weights 1 and -1.5 are 2 and -3 of 1/2. A unit of the current is 1/6: the biases 1/4 and 0 are round(1.5)
    = 2 and 0, the threshold 1 is 6. Weights 0.5 and 0.75 are 2 and 3 of 1/4, and the bias -0.5 is -2.
    """
    model = MLP((2,), 1, hard(2.0))
    params = {
        "Dense_0": {"kernel": jnp.asarray([[1.0, -1.5]]), "bias": jnp.asarray([0.25, 0.0])},
        "Dense_1": {"kernel": jnp.asarray([[0.5], [0.75]]), "bias": jnp.asarray([-0.5])},
    }
    x = jnp.zeros((2, 1))
    _, state = functional.init(model, jax.random.key(0, impl="rbg"), x)
    net = integer_network(model, params, state, x, 3, unit=1 / 3, largest=3)
    weights = {name: (own["kernel"].tolist(), own["bias"].tolist()) for name, own in net.params.items()}
    assert weights == {"Dense_0": ([[2, -3]], [2, 0]), "Dense_1": ([[2], [3]], [-2])}
    # Currents are within -9..9: with a shift of 1 down to -17 in 6 bits, and up to 5 - 2 + 9 = 12.
    assert net.bits == {"LIF_0": 6, "outputs": 4}  # and outputs within -7..7
    # Sample 0: neuron 0 has u = 8, a spike, then 4 and 4 - 2 + 2; neuron 1 has -9, -9 + 5 - 3, -7 + 4.
    # Sample 1: neuron 0 has 4, 4 - 2 - 4, -2 + 1 + 2; neuron 1 has -3, then -3 + 2 + 9, a spike, and 0.
    xs = jnp.asarray([[[3], [1]], [[1], [-3]], [[0], [0]]], jnp.int32)
    outputs, end = jax.jit(lambda *args: run(net.apply, *args))(net.params, net.state, xs)
    assert outputs[..., 0].tolist() == [[(2 - 2) / 4, -2 / 4], [-2 / 4, (3 - 2) / 4], [-2 / 4, -2 / 4]]
    assert end["LIF_0"].tolist() == [[4, -3], [1, 0]]


def test_equal_to_a_loop_of_integers():
    model, x = MLP((20, 16), 5, hard(4.0)), jnp.zeros((6, 9))
    params, state = drawn(model, x, gain=2.0)
    net = integer_network(model, params, state, x, 5, unit=1 / 8, largest=8, per_channel=True)
    xs = np.random.default_rng(1).integers(-4, 9, (15, 6, 9))
    outputs, end = jax.jit(lambda *args: run(net.apply, *args))(net.params, net.state, jnp.int32(xs))

    found = quantise(params, 5, per_channel=True)
    values, unit, spikes = xs, np.float64(1 / 8), []
    for i in (0, 1, 2):
        name = f"Dense_{i}"
        kernel = np.asarray(found.integers[name]["kernel"], np.int64)
        unit = unit * np.asarray(found.scales[name]["kernel"], np.float64)[0]
        currents = values @ kernel + np.round(params[name]["bias"] / unit).astype(np.int64)
        if i == 2:
            np.testing.assert_allclose(outputs, currents * unit, rtol=1e-6)
            break
        v, values = np.zeros(currents.shape[1:], np.int64), np.zeros_like(currents)
        for t, current in enumerate(currents):
            u = v - v // 4 + current
            values[t] = u >= np.ceil(1 / unit)
            v = np.where(values[t], 0, u)
        np.testing.assert_array_equal(end[f"LIF_{i}"], v)
        assert np.abs(v).max() < 2 ** (net.bits[f"LIF_{i}"] - 1)
        spikes.append(values.mean())
        unit = np.float64(1)
    assert all(0.02 < rate < 0.6 for rate in spikes)


def test_equal_to_the_float_network_where_that_is_exact():
    """Without memory and without biases, in scales that are powers of two: nothing is left to round."""
    model = ConvNet((4, 6), 3, hard(1.0), norm=False)
    x = jnp.zeros((3, 8, 8, 2))
    params, state = drawn(model, x, gain=2.5)
    without = jax.tree_util.tree_map_with_path(lambda k, p: p * (k[-1].key == "kernel"), params)
    how = {"per_channel": True, "power_of_two": True}
    xs = np.random.default_rng(1).integers(0, 9, (4, 3, 8, 8, 2))
    apply = functional.applier(model, train=False)

    def both(params):
        net = integer_network(model, params, state, x, 4, unit=1 / 8, largest=8, **how)
        ours = jax.jit(lambda *args: run(net.apply, *args)[0])(net.params, net.state, jnp.int32(xs))
        rounded = quantise(params, 4, **how).params
        floating = jax.jit(lambda *args: run(apply, *args)[0])(rounded, state, jnp.float32(xs / 8))
        return ours, floating

    integers, floating = both(without)
    np.testing.assert_array_equal(integers, floating)
    assert np.abs(floating).max() > 0 and np.unique(floating).size > 20
    # The control: biases are rounded.
    integers, floating = both(params)
    assert 0 < np.abs(integers - floating).max()
    assert np.abs(integers - floating).mean() < 0.2 * np.abs(floating).mean()


def test_norms_are_folded_before_kernels_are_rounded():
    """At 12 bits and without memory nearly every output is that of the network with its batch norms."""
    model, x = ConvNet((4,), 3, hard(1.0)), jnp.zeros((16, 4, 4, 1))
    params, state = drawn(model, x)
    rng = np.random.default_rng(2)
    params["StepBatchNorm_0"]["scale"] = jnp.asarray([2.0, -1.0, 1.5, 0.5])
    state["batch_stats"]["StepBatchNorm_0"] = {
        "mean": jnp.asarray([0.3, -0.2, 0.1, 0.0]), "var": jnp.asarray([0.5, 2.0, 1.0, 0.1]),
    }  # fmt: skip
    net = integer_network(model, params, state, x, 12, unit=1 / 16, largest=16)
    xs = rng.integers(0, 17, (3, 16, 4, 4, 1))
    ours = jax.jit(lambda *args: run(net.apply, *args)[0])(net.params, net.state, jnp.int32(xs))
    apply = functional.applier(model, train=False)
    theirs = jax.jit(lambda *args: run(apply, *args)[0])(params, state, jnp.float32(xs / 16))
    close = np.abs(ours - theirs) < 5e-3
    assert close.mean() > 0.9 and np.unique(np.round(theirs, 3)).size > 20


@pytest.mark.parametrize(
    ("model", "bits", "how", "message"),
    [
        (MLP((4,), 2), 8, {}, "LIF_0: neurons in integers are reset to 0: v_reset must be 0.0, got None"),
        (MLP((4,), 2, hard(1.1)), 8, {}, "LIF_0: a leak by a shift needs tau = 1, 2, 4"),
        (MLP((4,), 2, hard(2.0**15)), 16, {"largest": 4}, "LIF_0 could need 3[0-9] bits, and there are 32"),
        (MLP((4,), 2, hard(2.0)), 1, {}, "bits must be in 2..16, got 1"),
        (MLP((4,), 2, hard(2.0)), 8, {"unit": 0.0}, "unit must be > 0 and largest >= 1, got 0.0 and 1"),
        (MLP((4,), 2, hard(2.0)), 8, {"largest": 0}, "got 0.5 and 0"),
        (RecurrentNet((4,), 2, neuron=hard(2.0)), 8, {}, "has no form in integers"),
        (
            RecurrentNet((4,), 2, cell="lif", recurrent=False, neuron=hard(2.0)),
            8,
            {},
            "LIF_0 has learned its",
        ),
    ],
)
def test_what_has_no_form_in_integers(model, bits, how, message):
    x = jnp.zeros((1, 3))
    shapes = jax.eval_shape(lambda: functional.init(model, jax.random.key(0), x))
    params, state = jax.tree.map(lambda s: np.ones(s.shape, s.dtype), shapes)
    with pytest.raises(ValueError, match=message):
        integer_network(model, params, state, x, bits, **{"unit": 0.5, "largest": 1, **how})
