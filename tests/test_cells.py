"""Cells against numbers computed by hand, and what they refuse."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import (
    Neuron,
    alif,
    alif_step,
    li,
    li_step,
    lif_step,
    over_time,
    recurrent,
    synaptic,
    synaptic_step,
)
from sltt_jax.time_constants import logit_decay_of, tau_of

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")


def column(*values):
    return jnp.asarray(values, float)[:, None]


def test_leaky_integrator(compiled):
    v, ys = compiled(li)(jnp.ones(1), column(0.5, -1.0, 2.0), 4.0)
    # .75 + .5, .9375 - 1, -.046875 + 2
    np.testing.assert_allclose(ys[:, 0], [1.25, -0.0625, 1.953125], rtol=1e-15)
    chex.assert_trees_all_equal(v, ys[-1])


def test_adaptive_threshold(compiled):
    """tau = 2, tau_a = 4, beta = 1: after a spike the threshold is at 1.25, and then it falls."""
    (v, a, _), s = compiled(alif)((jnp.zeros(1),) * 3, column(1.5, 0.9, 1.3), Neuron(), 4.0, 1.0)
    # u: 1.5 >= 1 (spike, v = .5); 1.15 < 1.25, for a = .25; 1.875 >= 1.1875, for a = .1875 (spike)
    np.testing.assert_array_equal(s[:, 0], [1, 0, 1])
    np.testing.assert_allclose((v[0], a[0]), (0.6875, 0.1875), rtol=1e-15)
    # Without adaptation the second step spikes too.
    _, s = compiled(alif)((jnp.zeros(1),) * 3, column(1.5, 0.9, 1.3), Neuron(), 4.0, 0.0)
    np.testing.assert_array_equal(s[:, 0], [1, 1, 1])


def test_adaptive_threshold_with_a_hard_reset(compiled):
    neuron = Neuron(v_reset=-0.5)
    (v, a, _), s = compiled(alif)(
        (jnp.full(1, -0.5), *(jnp.zeros(1),) * 2), column(1.6, 1.7), neuron, 4.0, 1.0
    )
    # u: -.25 + 1.6 - .25 = 1.1 (spike, v = -.5); -.5 + 1.7 = 1.2 < 1.25
    np.testing.assert_array_equal(s[:, 0], [1, 0])
    np.testing.assert_allclose((v[0], a[0]), (1.2, 0.25), rtol=1e-15)


@pytest.mark.parametrize("cut", [False, True])
def test_gradient_of_the_adaptation(cut):
    """By `beta` and `tau_a`, of two steps the first of which spikes: through the threshold of the second."""

    def loss(beta, tau_a):
        state, _ = alif_step((jnp.asarray(0.0),) * 3, jnp.asarray(1.5), Neuron(), tau_a, beta)
        state = jax.lax.stop_gradient(state) if cut else state
        return alif_step(state, jnp.asarray(0.9), Neuron(), tau_a, beta)[1]

    # u - theta = 1.15 - 1.25 with slope .9 of the triangle; theta = 1 + beta / tau_a. The first step has no
    # adaptation yet, so nothing comes through it and the cut of SLTT takes nothing away.
    np.testing.assert_allclose(jax.grad(loss, (0, 1))(1.0, 4.0), (-0.9 / 4, 0.9 / 16), rtol=1e-12)


def test_synaptic_current(compiled):
    (v, i), s = compiled(synaptic)((jnp.zeros(1), jnp.zeros(1)), column(0.8, 0.4, 0.0), Neuron(), 4.0)
    # i: .8, 1.0, .75; u: .8, 1.4 (spike), .2 + .75
    np.testing.assert_array_equal(s[:, 0], [0, 1, 0])
    np.testing.assert_allclose((v[0], i[0]), (0.95, 0.75), rtol=1e-15)


def test_lateral_weights(compiled):
    """The first neuron drives the second one a step later, and holds itself back."""
    w = jnp.asarray([[-0.5, 1.2], [0.0, 0.0]])
    state = jnp.zeros((1, 2)), jnp.zeros((1, 2))
    xs = jnp.asarray([[1.2, 0.0], [1.2, 0.0], [0.0, 0.0]])[:, None]
    (v, last), s = compiled(over_time(recurrent(lif_step)))(state, xs, w, Neuron())
    # v: .2, 0 -> u: .1 + 1.2 - .5 = .8, 1.2 (spike) -> .4, .1
    np.testing.assert_array_equal(s[:, 0], [[1, 0], [0, 1], [0, 0]])
    np.testing.assert_allclose(v[0], [0.4, 0.1], rtol=1e-14)
    chex.assert_trees_all_equal(last, s[-1])
    block = lambda *args: over_time(recurrent(lif_step))(*args, neuron=Neuron(), temporal_gradient=False)
    chex.assert_trees_all_equal(compiled(block)(state, xs, w), ((v, last), s))


def test_time_constants_that_are_learned(compiled):
    tau = jnp.asarray([1.1, 2.0, 300.0])
    p = logit_decay_of(tau)
    chex.assert_trees_all_close(compiled(tau_of)(p), tau, rtol=1e-14)
    chex.assert_trees_all_close(jax.nn.sigmoid(p), 1 - 1 / tau, rtol=1e-14)
    chex.assert_trees_all_close(jax.vmap(jax.grad(tau_of))(p), tau - 1, rtol=1e-14)
    for wrong in (1.0, 0.5, np.inf, [2.0, 1.0]):
        with pytest.raises(ValueError, match="a learned time constant must be above 1 and finite"):
            logit_decay_of(wrong)


CALLS = {
    "tau": partial(li_step, jnp.zeros(1), jnp.zeros(1)),
    "tau_a": partial(alif_step, (jnp.zeros(1),) * 3, jnp.zeros(1), Neuron()),
    "tau_syn": partial(synaptic_step, (jnp.zeros(1), jnp.zeros(1)), jnp.zeros(1), Neuron()),
}


@pytest.mark.parametrize("name", CALLS)
def test_time_constants_that_cannot_be(name):
    for wrong in (0.9, np.asarray([2.0, -1.0]), np.nan):
        with pytest.raises(ValueError, match=rf"{name} must be >= 1 \(in time steps\), got "):
            CALLS[name](wrong)


@pytest.mark.parametrize("name", CALLS)
def test_states_and_inputs_that_do_not_fit(name):
    step, wrong = CALLS[name].func, jnp.zeros(2)
    state, _, *neuron = CALLS[name].args
    with pytest.raises(ValueError, match=r"membrane \(1,\) and input of one step \(2,\) must have"):
        step(state, wrong, *neuron)
    with pytest.raises(ValueError, match="floating point, got int"):
        step(state, jnp.zeros(1, int), *neuron)


def test_blocks_that_cannot_be():
    block = over_time(lambda state, x: (state + x["a"], state))
    with pytest.raises(ValueError, match=r"at least one time step, got shape \(\)"):
        block(jnp.zeros(3), {})
    with pytest.raises(ValueError, match=r"the same time steps in all arrays .* got \(4, 3\), \(5, 3\)"):
        block(jnp.zeros(3), {"a": jnp.ones((4, 3)), "b": jnp.ones((5, 3))})
    with pytest.raises(ValueError, match=r"the same time steps in all arrays .* got \(2, 3\), \(4, 3\)"):
        block(jnp.zeros(3), (jnp.ones((4, 3)), jnp.ones((2, 3))))
    with pytest.raises(ValueError, match="must be True or False when a network is traced"):
        jax.jit(lambda t: block(jnp.zeros(3), {"a": jnp.ones((4, 3))}, temporal_gradient=t))(True)
    assert li.__name__ == "li" and "li_step" in li.__doc__


@pytest.mark.parametrize("C", [1, 4])
@pytest.mark.parametrize("temporal_gradient", [True, False])
def test_inputs_may_be_a_tuple(C, temporal_gradient, x64):
    """Of several inputs of each step, as well as a dict of them."""
    current, gate = jax.random.normal(jax.random.key(0), (2, C, 3, 5))
    neuron, how = Neuron(v_threshold=0.3), {"temporal_gradient": temporal_gradient}
    gated = over_time(lambda v, x: lif_step(v, x[0] * x[1], neuron))
    named = over_time(lambda v, x: lif_step(v, x["current"] * x["gate"], neuron))

    def total(block, xs):
        return jnp.vdot(
            jnp.cos(jnp.arange(C * 15.0)).reshape(C, 3, 5), block(jnp.zeros((3, 5)), xs, **how)[1]
        )

    of_tuple = jax.value_and_grad(total, 1)(gated, (current, gate))
    value, grads = jax.value_and_grad(total, 1)(named, {"current": current, "gate": gate})
    chex.assert_trees_all_close(of_tuple, (value, (grads["current"], grads["gate"])), rtol=1e-12)
    assert value != 0 and all(jnp.abs(g).max() > 0 for g in of_tuple[1])
