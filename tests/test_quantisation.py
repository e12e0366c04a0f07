"""Kernels as integers times a scale, and the gradient that goes through their rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import bptt, sltt
from sltt_jax.quantisation import quantise, quantised
from tests.common.nets import assert_close, difference, net, program

W = np.asarray([[-1.5, 0.4], [0.6, 0.0], [0.2, 0.1]], np.float32)


@pytest.mark.parametrize(
    ("how", "scale", "integers"),
    [
        ({}, 0.5, [[-3, 1], [1, 0], [0, 0]]),  # 0.4 / 0.5 = 0.8, 0.6 / 0.5 = 1.2
        ({"per_channel": True}, [[0.5, 0.4 / 3]], [[-3, 3], [1, 0], [0, 1]]),  # 0.1 / 0.133 = 0.75
        ({"power_of_two": True}, 0.5, [[-3, 1], [1, 0], [0, 0]]),  # 1.5 / 3 is one already
        ({"per_channel": True, "power_of_two": True}, [[0.5, 0.25]], [[-3, 2], [1, 0], [0, 0]]),
    ],
)
def test_three_bits_worked_out_by_hand(how, scale, integers):
    bias = np.asarray([0.3, 0.7], np.float32)
    found = quantise({"w": W, "bias": bias}, 3, **how)
    np.testing.assert_array_equal(found.integers["w"], integers)
    np.testing.assert_allclose(found.scales["w"], scale, rtol=1e-7)
    np.testing.assert_allclose(found.params["w"], np.multiply(integers, scale), rtol=1e-6)
    assert found.integers["w"].dtype == jnp.int8 and found.params["w"].dtype == W.dtype
    assert found.params["bias"] is bias and found.integers["bias"] is None and found.scales["bias"] is None


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_any_kernel(bits, per_channel, power_of_two):
    rng = np.random.default_rng(0)
    w = (rng.normal(size=(3, 3, 2, 5)) * 10.0 ** rng.integers(-4, 4, 5)).astype(np.float32)
    w[..., 1] = 0
    found = quantise([w], bits, per_channel=per_channel, power_of_two=power_of_two)
    (q,), (scale,), (rounded,) = jax.device_get((found.integers, found.scales, found.params))
    most = 2 ** (bits - 1) - 1
    assert q.dtype == (np.int8 if bits <= 8 else np.int16) and scale.shape == (
        (1, 1, 1, 5) if per_channel else ()
    )
    assert np.abs(q.astype(int)).max() <= most and not q[..., 1].any()
    # The largest weight uses the range: whole, or more than half of it with a power of two.
    used = np.abs(q.astype(int)).max((0, 1, 2) if per_channel else None)
    assert (used[np.arange(5) != 1] if per_channel else used).min() >= (most / 2 if power_of_two else most)
    if power_of_two:
        assert (np.frexp(scale)[0] == 0.5).all()
    # Half a unit, and what float32 rounds.
    assert (np.abs(rounded - w) <= scale * (0.5 + most * 2**-22)).all() and np.abs(rounded - w).max() > 0


def test_what_cannot_be_rounded(x64):
    for bits in (1, 17):
        with pytest.raises(ValueError, match=f"bits must be in 2..16, got {bits}"):
            quantise({"w": W}, bits)
    for tree in ({}, {"tau": jnp.ones(3), "count": jnp.ones((2, 2), jnp.int32)}):
        with pytest.raises(ValueError, match="no kernel to round"):
            quantise(tree)
        with pytest.raises(ValueError, match="no kernel to round"):
            quantised(net("two_matrices").apply)(tree, (), W, temporal_gradient=True)


@pytest.mark.usefixtures("x64", "quick_compile")
def test_gradient_is_that_at_the_rounded_weights():
    n, how = net("two_matrices"), {"bits": 4, "per_channel": True, "power_of_two": True}
    args, key = (n.state, n.inputs, n.target), jax.random.key(0)
    rounded = quantise(n.params, **how).params
    of_weights = {}
    for rule in (sltt(), bptt()):
        exact = program("two_matrices", rule)
        through = jax.jit(rule.value_and_grad(quantised(n.apply, **how), n.step_loss))
        (loss, aux), grads = through(n.params, *args)
        (rounded_loss, rounded_aux), at_rounded = exact(rounded, *args, key)
        np.testing.assert_array_equal(aux.outputs, rounded_aux.outputs)
        np.testing.assert_allclose(loss, rounded_loss, rtol=1e-14)
        assert_close(grads, at_rounded)
        # The controls: at the weights themselves it is another one, and the network is alive.
        _, at_weights = exact(n.params, *args, key)
        assert min(difference(grads, at_weights).values()) > 1e-2
        assert aux.outputs.mean() > 0 and all(np.abs(g).max() > 1e-6 for g in grads.values())
        of_weights[str(rule)] = grads
    assert max(difference(of_weights["sltt"], of_weights["bptt"]).values()) > 1e-2


@pytest.mark.usefixtures("x64", "quick_compile")
def test_bare_rounding_learns_nothing():
    """All that is left of a gradient is the scale's, which one weight, the largest, has."""
    n = net("two_matrices")
    bare = lambda params, *args, **named: n.apply(quantise(params, 6).params, *args, **named)
    f = jax.jit(sltt().value_and_grad(bare, n.step_loss))
    for name, g in f(n.params, n.state, n.inputs, n.target)[1].items():
        w = np.abs(n.params[name])
        assert np.abs(g)[w < w.max()].max() == 0 and np.abs(g).max() > 0
