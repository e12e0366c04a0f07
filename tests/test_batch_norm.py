"""Statistics in one pass and the gradient in two, against the formulas written out."""

from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax.batch_norm import normalise, statistics
from sltt_jax.cpu import two_sums
from sltt_jax.layers import Conv, NormedConv, StepBatchNorm

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.mark.parametrize("mean", [0, 1e3, 1e4])
@pytest.mark.parametrize("first", [0, 30])
def test_a_variance_of_1_far_from_0(mean, first):
    """In float32; without the shift it would be lost. Even an outlier serves as the shift."""
    x = np.random.default_rng(0).normal(mean, 1, (2, 8, 16, 16, 3)).astype(np.float32)
    x[:, 0, 0, 0] += first
    exact = x.astype(np.float64)
    expected = exact.mean((1, 2, 3), keepdims=True), exact.var((1, 2, 3), keepdims=True)
    got = jax.jit(statistics)(x)
    np.testing.assert_allclose(got[0], expected[0], rtol=3e-7, atol=2e-7 * (1 + first))
    np.testing.assert_allclose(got[1], expected[1], rtol=1e-4 if first else 3e-6)
    y, *_ = jax.jit(partial(normalise, epsilon=0.0))(x, jnp.ones(3), jnp.zeros(3))
    unit = (exact - expected[0]) / np.sqrt(expected[1])
    np.testing.assert_allclose(y, unit, rtol=1e-4 if first else 2e-6, atol=3e-6 + 2e-7 * mean)
    naive = (x * x).mean((1, 2, 3)) - x.mean((1, 2, 3)) ** 2
    assert mean == 0 or np.abs(naive / expected[1][:, 0, 0, 0] - 1).max() > 0.01


def written_out(x, scale, bias):
    centred = x - x.mean((1, 2), keepdims=True)
    var = (centred**2).mean((1, 2), keepdims=True)
    along = lambda a: jax.lax.broadcast_to_rank(a, x.ndim)
    return centred / jnp.sqrt(var + 1e-5) * along(scale) + along(bias)


def arguments():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(3, 2, (2, 4, 5, 3))), *map(jnp.asarray, rng.normal(size=(2, 3)))


def test_first_and_second_derivatives(x64):
    """To input, scale and bias; the second as a Hessian times a vector, and by reverse mode twice."""
    at = arguments()
    direction = jax.tree.map(jnp.cos, at)

    def both(f):
        loss = lambda at: jnp.sin(f(*at)).sum()
        grad = jax.grad(loss)
        dot = lambda at: sum(jnp.vdot(a, b) for a, b in zip(grad(at), direction, strict=True))
        return jax.jit(lambda at: (grad(at), jax.jvp(grad, (at,), (direction,))[1], jax.grad(dot)(at)))(at)

    found = both(lambda *at: normalise(*at, 1e-5)[0])
    chex.assert_trees_all_close(found, both(written_out), rtol=1e-10, atol=1e-12)
    assert all(jnp.abs(leaf).max() > 1e-2 for leaf in jax.tree.leaves(found))


def test_sums_of_accelerators_are_those_of_the_cpu(x64, monkeypatch):
    """Of them and their derivatives; the form for accelerators is run here."""
    a, b = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    f = lambda a, b: two_sums(jnp.sin(a), a * b, (1,))
    loss = lambda a, b: sum(jnp.sum(s**2) for s in f(a, b))
    expected = f(a, b), jax.grad(loss, (0, 1))(a, b)
    np.testing.assert_allclose(expected[0][0], np.sin(a).sum(1, keepdims=True), rtol=1e-12)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args))
    assert "reduce[" in str(jax.make_jaxpr(f)(a, b))
    chex.assert_trees_all_close((f(a, b), jax.grad(loss, (0, 1))(a, b)), expected, rtol=1e-12)


class Added(nn.Module):
    """Linen's convolution with its bias, and the norm."""

    @nn.compact
    def __call__(self, xs, *, train):
        return StepBatchNorm(name="norm")(Conv(3, (3, 3), 2, padding=1, name="conv")(xs), train=train)


class BesideIt(nn.Module):
    @nn.compact
    def __call__(self, xs, *, train):
        xs, bias = NormedConv(3, (3, 3), 2, 1, name="conv")(xs)
        return StepBatchNorm(name="norm")(xs, bias, train=train)


def test_a_bias_beside_the_activations(x64):
    """The same outputs, in evaluation too, running statistics and gradients; that of the bias is 0."""
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 6, 6, 2)))
    variables = jax.jit(partial(Added().init, train=True))(jax.random.key(0), xs)
    variables["params"]["conv"]["bias"] = jnp.asarray([0.5, -1.0, 2.0])

    def both(model):
        def loss(params):
            y, changed = model.apply({**variables, "params": params}, xs, train=True, mutable=True)
            after = model.apply({**changed, "params": params}, xs, train=False)
            return jnp.sin(y).sum(), (y, after, changed["batch_stats"])

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    (expected, results), (found, ours) = both(Added()), both(BesideIt())
    chex.assert_trees_all_close(ours, results, rtol=1e-10, atol=1e-12)
    assert not found["conv"].pop("bias").any()
    expected["conv"].pop("bias")
    chex.assert_trees_all_close(found, expected, rtol=1e-10, atol=1e-12)
