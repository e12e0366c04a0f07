import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax.neurons import Neuron, lif, lif_step
from sltt_jax.surrogate import SURROGATES
from tests.common.surrogates import DERIVATIVES

pytestmark = pytest.mark.usefixtures("x64")

A1, A2 = 0.7, -1.3  # the loss is A1 s1 + A2 s2
RESET = -0.5


def two_steps(compiled, neuron, **kwargs):
    """Gradient of the loss with respect to both inputs; the first step spikes at u = 1.25, then u = 0.6.

    tau = 2, so half of the membrane is left: soft reset leaves 0.25, hard reset sets -0.5 and leaks to it.
    """
    rest, x = (0.0, [1.25, 0.475]) if neuron.v_reset is None else (RESET, [1.75, 1.1])

    def loss(x):
        v, s1 = lif_step(jnp.asarray(rest), x[0], neuron, **kwargs)
        v, s2 = lif_step(v, x[1], neuron, **kwargs)
        return A1 * s1 + A2 * s2, (s1, s2, v)

    grad, (s1, s2, v) = compiled(jax.grad(loss, has_aux=True))(jnp.asarray(x))
    assert (s1, s2) == (1, 0)
    np.testing.assert_allclose(v, 0.6, rtol=1e-15)
    return grad


@pytest.mark.parametrize("name", DERIVATIVES)
@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("v_reset", [None, RESET])
def test_hand_computed_gradients_of_two_steps(name, detach_reset, v_reset, compiled):
    _, _, g1, g2 = DERIVATIVES[name]  # at u - v_threshold = 0.25 and -0.4
    neuron = Neuron(v_reset=v_reset, detach_reset=detach_reset, surrogate=SURROGATES[name]())
    if v_reset is None:
        kept = 1 if detach_reset else 1 - 1.0 * g1  # dv/du of the first step: 1 - v_threshold g
    else:
        kept = 0 if detach_reset else (RESET - 1.25) * g1  # (1 - s) + (v_reset - u) g, with s = 1
    expected = [A1 * g1 + A2 * g2 * 0.5 * kept, A2 * g2]
    np.testing.assert_allclose(two_steps(compiled, neuron), expected, rtol=1e-12)
    # SLTT: the temporal part is gone and nothing else.
    cut = two_steps(compiled, neuron, temporal_gradient=False)
    np.testing.assert_allclose(cut, [A1 * g1, A2 * g2], rtol=1e-12)


def test_hand_computed_membranes(compiled):
    """Four steps with tau = 4: three quarters of the membrane stay."""
    x = jnp.asarray([0.8, 0.4, 1.2, -0.5])[:, None]
    block = compiled(lif)
    v, s = block(jnp.zeros(1), x, Neuron(tau=4.0))
    # u: .8, 1.0 (spike at the threshold), 1.2 (spike), 0.15 - 0.5
    np.testing.assert_array_equal(s[:, 0], [0, 1, 1, 0])
    np.testing.assert_allclose(v, [-0.35], rtol=1e-12)
    v, s = block(jnp.zeros(1), x, Neuron(tau=4.0, v_reset=0.0))
    # u: .8, 1.0, 1.2, -0.5
    np.testing.assert_array_equal(s[:, 0], [0, 1, 1, 0])
    np.testing.assert_allclose(v, [-0.5], rtol=1e-12)
    v, s = block(jnp.full(1, 0.2), x, Neuron(tau=4.0, v_reset=0.2, decay_input=True, v_threshold=0.5))
    # u: .15 + .05 + .2, .3 + .05 + .1, .3375 + .05 + .3 (spike), .15 + .05 - .125
    np.testing.assert_array_equal(s[:, 0], [0, 0, 1, 0])
    np.testing.assert_allclose(v, [0.075], rtol=1e-12)


def test_integrate_and_fire_forgets_nothing(compiled):
    v, s = compiled(lif)(jnp.zeros(1), jnp.full((10, 1), 0.125), Neuron(tau=math.inf))
    np.testing.assert_array_equal(s[:, 0], [0] * 7 + [1, 0, 0])
    assert v == 0.25


@pytest.mark.parametrize("v_reset", [None, -0.2])
@pytest.mark.parametrize("steps", [1, 2, 7])  # one; unrolled on a CPU; a loop
def test_block_is_a_loop_of_steps(v_reset, steps):
    rng = np.random.default_rng(0)
    xs, v0 = jnp.asarray(rng.normal(size=(steps, 50)) + 0.5), jnp.asarray(rng.normal(size=50))
    weights = jnp.asarray(rng.normal(size=(steps, 50)))

    def loop(v, xs, neuron, *, temporal_gradient):
        spikes = []
        for x in xs:
            v, s = lif_step(v, x, neuron, temporal_gradient=temporal_gradient)
            spikes.append(s)
        return v, jnp.stack(spikes)

    @partial(jax.jit, static_argnums=0)
    def evaluate(f, *args):
        """With and without temporal gradient: the gradients, and the membrane and spikes."""

        def loss(v, xs, tau, temporal_gradient):
            n = Neuron(tau=tau, v_reset=v_reset)
            v, s = f(v, xs, n, temporal_gradient=temporal_gradient)
            return jnp.vdot(weights, s), (v, s)

        return {
            temporal: jax.grad(loss, (0, 1, 2), has_aux=True)(*args, temporal) for temporal in (True, False)
        }

    results, expected = (jax.device_get(evaluate(f, v0, xs, 3.0)) for f in (lif, loop))
    for temporal, (grads, out) in results.items():
        expected_grads, expected_out = expected[temporal]
        chex.assert_trees_all_equal(out, expected_out)
        chex.assert_trees_all_close(grads, expected_grads, rtol=1e-11, atol=1e-13)
        assert 0.1 < out[1].mean() < 0.6
    (whole, out), (cut, same_out) = results[True], results[False]
    chex.assert_trees_all_equal(out, same_out)
    assert not cut[0].any() and whole[0].any()  # the gradient to the membrane
    if steps > 1:
        assert np.abs(whole[1] - cut[1]).max() > 1e-2


def test_spikes_and_membranes_agree_on_many_neurons():
    """The spikes of a block are recomputed after its loop; they must be those that reset the membranes."""
    with jax.enable_x64(False):
        xs = jnp.asarray(np.random.default_rng(0).normal(0.4, size=(12, 200_000)), jnp.float32)
        neuron = Neuron(tau=1.7)
        f = jax.jit(partial(lif, neuron=neuron, temporal_gradient=False))
        v, s = f(jnp.zeros(200_000), xs)
        total = jnp.zeros(200_000)
        for x, spikes in zip(xs, s, strict=True):
            u = (1 - 1 / neuron.tau) * total + x
            total = u - spikes
        np.testing.assert_allclose(total, v, atol=1e-4)  # a single wrong reset would be off by 1


@pytest.mark.parametrize("tau", [1.1, 3.0])
def test_a_block_rounds_as_its_steps_do(tau):
    """At membranes within a rounding error of the threshold, where any other rounding is another spike."""
    with jax.enable_x64(False):
        v = jnp.asarray(np.random.default_rng(0).uniform(size=10_000), jnp.float32)
        neuron = Neuron(tau=tau)
        xs = jnp.stack([1 - (1 - 1 / tau) * v, jnp.zeros_like(v)])
        (end, spikes), (_, same) = (
            jax.jit(partial(lif, neuron=neuron, temporal_gradient=temporal))(v, xs)
            for temporal in (False, True)
        )
        chex.assert_trees_all_equal(spikes, same)
        assert 0.2 < spikes[0].mean() < 0.999
        # A spike left a membrane of about 0, none one of about 1.
        chex.assert_trees_all_equal(end > (1 - 1 / tau) / 2, spikes[0] == 0)


def test_parameters_are_a_pytree():
    neuron = Neuron(tau=jnp.asarray([2.0, 4.0]), v_threshold=0.8)
    leaves = jax.tree.leaves(neuron)
    assert len(leaves) == 2 and jax.tree.leaves(Neuron(v_reset=0.0))[2] == 0
    xs = jnp.full((3, 2), 0.7)

    @partial(jax.jit, static_argnums=1)
    @jax.grad
    def gradient(neuron, temporal_gradient):
        with jax.numpy_rank_promotion("allow"):  # a value a channel broadcasts against the membranes
            return lif(jnp.zeros(2), xs, neuron, temporal_gradient=temporal_gradient)[1].sum()

    for temporal in (True, False):
        grads = gradient(neuron, temporal)
        assert isinstance(grads, Neuron)
        chex.assert_shape(grads.tau, (2,))
        assert (grads.tau != 0).all() and grads.v_threshold != 0


def test_bfloat16_inputs_keep_a_float32_membrane():
    v, s = jax.eval_shape(lif_step, jnp.zeros(3, jnp.float32), jnp.ones(3, jnp.bfloat16), Neuron())
    chex.assert_type([v, s], jnp.float32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tau": 0.5}, "tau must be >= 1 .* got 0.5"),
        ({"tau": math.nan}, "tau must be >= 1 .* got nan"),
        ({"v_threshold": 0.0}, "v_threshold must be > 0, got 0"),
        ({"v_reset": 1.0}, "v_reset must be below v_threshold=1.0, got 1.0"),
        ({"tau": math.inf, "decay_input": True}, "tau=inf"),
    ],
)
def test_parameters_outside_their_range(settings, message):
    with pytest.raises(ValueError, match=message):
        Neuron(**settings)


@pytest.mark.parametrize("temporal", [True, False])
def test_wrong_inputs(temporal):
    block = partial(lif, neuron=Neuron(), temporal_gradient=temporal)
    with pytest.raises(ValueError, match=r"membrane \(3,\) and input .* \(4,\) must have the same shape"):
        block(jnp.zeros(3), jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match="floating point, got int"):
        block(jnp.zeros(3), jnp.zeros((2, 3), int))
    with pytest.raises(ValueError, match=r"at least one time step, got shape \(0, 3\)"):
        block(jnp.zeros(3), jnp.zeros((0, 3)))
    with pytest.raises(ValueError, match="same shape"):
        lif_step(jnp.zeros(3), jnp.zeros(4), Neuron())
