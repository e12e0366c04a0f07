"""BPTT that keeps spikes as bits: the same gradient, from an eighth of a byte a neuron and step."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import Neuron, alif_step, bptt, li, lif, over_time, parse_rule, recurrent, sltt, surrogate
from sltt_jax.bits import IN_BITS, KEPT, kept_in_bits
from tests.common import nets
from tests.common.nets import T, assert_close, difference, gradient, squared_error

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")


@pytest.mark.parametrize(
    ("name", "chunk"),
    [
        ("two_matrices", T),
        ("two_matrices", 4),
        ("convnet", T),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("convnet", 1), ("mlp", T), ("mlp", 4))),
    ],
)
def test_the_gradient_is_that_of_bptt(name, chunk):
    (_, aux), exact = gradient(name, bptt())
    (_, kept), grads = gradient(name, bptt(chunk, bits=True))
    assert_close(grads, exact)
    assert_close((kept.losses, kept.state), (aux.losses, aux.state), 1e-13)
    chex.assert_trees_all_equal(kept.outputs, aux.outputs)
    # The control: a rule that must differ does.
    assert max(difference(gradient(name, sltt())[1], exact).values()) > 1e-2


BATCH, N = 3, 9
rng = np.random.default_rng(0)
PARAMS = {
    "w": rng.normal(size=(4, N)),
    "lateral": 0.3 * rng.normal(size=(N, N)),
    "own": rng.normal(size=(N, N)),
    "readout": rng.normal(size=(N, 2)),
}
XS = rng.normal(size=(T, BATCH, 4))
ZERO = np.zeros((BATCH, N))
STATE = [((ZERO, ZERO, ZERO), ZERO), ZERO, np.zeros((BATCH, 2))]


def own_step(v, x):
    """A cell that the library does not know, and that puts out no spikes."""
    v = 0.5 * v + x
    return v, jnp.tanh(v)


def apply(p, state, xs, *, temporal_gradient):
    cells = over_time(recurrent(alif_step)), over_time(own_step), li
    neuron = Neuron(tau=3.0, v_threshold=0.4)
    a, xs = cells[0](state[0], xs @ p["w"], p["lateral"], neuron, 10.0, temporal_gradient=temporal_gradient)
    b, xs = cells[1](state[1], xs @ p["own"], temporal_gradient=temporal_gradient)
    c, xs = cells[2](state[2], xs @ p["readout"], 4.0, temporal_gradient=temporal_gradient)
    return xs, [a, b, c]


@pytest.mark.slow
def test_recurrent_adaptive_cells_and_one_of_ones_own():
    def under(rule):
        f = jax.jit(rule.value_and_grad(apply, squared_error))
        return f(PARAMS, STATE, XS, jnp.ones((BATCH, 2)))

    exact = under(bptt())
    for chunk in (T, 4):
        assert_close(under(bptt(chunk, bits=True)), exact)
    assert all(np.abs(g).max() > 1e-4 for g in jax.tree.leaves(exact[1]))


def test_a_smooth_function_in_place_of_a_spike_is_kept_as_it_is():
    n = nets.two_matrices(spike=lambda x: jax.nn.sigmoid(4 * x))
    args = n.params, n.state, n.inputs, n.target
    exact, kept = (
        jax.jit(rule.value_and_grad(n.apply, n.step_loss))(*args) for rule in (bptt(), bptt(T, bits=True))
    )
    assert_close(kept, exact)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float64])
def test_spikes_come_back_from_their_bits(dtype):
    spikes = jnp.asarray(rng.integers(0, 2, (3, 5, 7)), dtype)
    found = jax.jit(kept_in_bits)(spikes)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, spikes)
    weights = jnp.broadcast_to(jnp.arange(7, dtype=dtype), spikes.shape)
    slope = jax.grad(lambda s: jnp.vdot(kept_in_bits(s), weights))(spikes)
    np.testing.assert_array_equal(slope, weights)


def kept_bytes(T, temporal_gradient, policy):
    """What a backward pass through one block of T steps keeps, but for parameters, inputs and state."""
    neuron = Neuron(surrogate=surrogate.triangle())
    v, w = jnp.zeros((4, 64)), jnp.ones((64, 64))

    def loss(w, x):
        total = 0.0
        for _ in range(3):
            _, x = lif(v, x @ w, neuron, temporal_gradient=temporal_gradient)
            total += x.sum()
        return total

    f = jax.checkpoint(loss, policy=policy) if policy else loss
    kept = jax.eval_shape(lambda w, x: jax.vjp(f, w, x)[1], w, jnp.ones((T, 4, 64)))
    given = T * 4 * 64 * 8 + w.nbytes
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept)) - given


def test_one_bit_a_neuron_and_step():
    layers, neurons = 2, 4 * 64  # nothing is multiplied by what the third layer puts out
    growth = kept_bytes(32, IN_BITS, KEPT) - kept_bytes(16, IN_BITS, KEPT)
    assert growth == layers * neurons * 16 / 8
    # The control: otherwise it is at least two numbers of 8 bytes.
    assert kept_bytes(32, True, None) - kept_bytes(16, True, None) >= 2 * layers * neurons * 16 * 8


def test_spelling():
    assert str(bptt(6, bits=True)) == "bptt(6, bits=True)" and parse_rule("bptt(bits=True)") == bptt(
        bits=True
    )
    with pytest.raises(ValueError, match="choose one of them"):
        bptt(bits=True, remat=True)
