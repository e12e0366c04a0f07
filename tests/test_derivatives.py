"""Derivatives through a rule: to the inputs (saliency, adversarial examples), and second ones."""

import chex
import jax
import jax.numpy as jnp
import pytest

from sltt_jax import sltt, sltt_k, surrogate
from tests.common.nets import T, two_matrices

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")
KEY = jax.random.key(7)


def loss_by_hand(net, steps):
    """The loss with all membranes detached, summed over `steps`, as a function of parameters and inputs.

    Without `lax.scan`, whose own derivatives lose the rule of the spike.
    """

    def loss(params, xs):
        state, total = net.state, 0.0
        for t in range(T):
            outputs, state = net.apply(params, state, xs[t : t + 1], temporal_gradient=False)
            total += net.step_loss(outputs[0], net.target) / T if t in steps else 0.0
        return total

    return loss


@pytest.mark.parametrize(
    "rule", [sltt(), sltt(4), sltt_k(2), pytest.param(sltt(3), marks=pytest.mark.slow)], ids=str
)
def test_gradient_of_the_loss_to_the_inputs(rule):
    net = two_matrices()
    through = lambda xs: rule.value_and_grad(net.apply, net.step_loss)(
        net.params, net.state, xs, net.target, KEY
    )[0][0]
    found = jax.jit(jax.grad(through))(net.inputs)
    # The loss is that of all steps under SLTT-K too; only its gradient to the parameters is of k of them.
    expected = jax.jit(jax.grad(loss_by_hand(net, range(T)), 1))(net.params, net.inputs)
    chex.assert_trees_all_close(found, expected, rtol=1e-12, atol=1e-15)
    assert (jnp.abs(found).max((1, 2)) > 1e-4).all()  # at every step


@pytest.mark.parametrize(
    ("rule", "steps"), [(sltt(), range(T)), (sltt(4), range(T)), (sltt_k(2, draw=(0, 3)), (0, 3))], ids=str
)
def test_second_derivatives(rule, steps):
    """The Hessian times a vector, to parameters and inputs, against those of plain JAX.

    Of a spike that has the value of the step and the derivatives of the logistic function.
    """
    spike = surrogate.sigmoid()

    def by_hand(x):
        smooth = jax.nn.sigmoid(spike.alpha * x)
        return smooth + jax.lax.stop_gradient((x >= 0) - smooth)

    net, reference = two_matrices(spike), two_matrices(by_hand)
    grads = lambda params, xs: rule.value_and_grad(net.apply, net.step_loss)(
        params, net.state, xs, net.target, KEY
    )[1]
    at = net.params, net.inputs
    direction = jax.tree.map(jnp.cos, at)
    product = lambda f: jax.jit(lambda *at: jax.jvp(f, at, direction)[1])(*at)
    found, expected = product(grads), product(jax.grad(loss_by_hand(reference, steps)))
    chex.assert_trees_all_close(found, expected, rtol=1e-10, atol=1e-14)
    assert all(jnp.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize("name", surrogate.SURROGATES)
def test_derivatives_of_a_spike(name):
    """The first is the surrogate, and the second is its derivative, inside of another derivative too."""
    spike, x = surrogate.SURROGATES[name](), jnp.asarray([-0.4, 0.1, 0.3])
    derivative = lambda x: spike.derivative(x, spike.alpha)
    chex.assert_trees_all_close(jax.vmap(jax.grad(spike))(x), derivative(x), rtol=1e-12)
    second = jax.vmap(jax.grad(jax.grad(spike)))(x)
    chex.assert_trees_all_close(second, jax.vmap(jax.grad(derivative))(x), rtol=1e-12)
    value_of_gradient = lambda x: jax.value_and_grad(spike)(x)[0]  # what a rule returns as its loss
    chex.assert_trees_all_close(jax.vmap(jax.grad(value_of_gradient))(x), derivative(x), rtol=1e-12)
