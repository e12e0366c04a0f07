"""Optimizers and schedules, against numbers by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sltt_jax import training

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_sgd_is_that_of_torch(x64):
    """Coupled weight decay before the momentum: b = 0.9 b + g + 0.01 w, w -= 0.1 b."""
    optimizer = training.make_optimizer("sgd", 0.1, weight_decay=0.01, momentum=0.9)
    params = jnp.asarray(2.0)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    # b = 0.52, -0.51252, 1.55872452
    for g, expected in ((0.5, 1.948), (-1.0, 1.999252), (2.0, 1.843379548)):
        changes, state = update(jnp.asarray(g), state, params)
        params = optax.apply_updates(params, changes)
        np.testing.assert_allclose(params, expected, rtol=1e-9)


def test_adamw_decays_apart_from_the_gradient(x64):
    """A first step of size lr, in the direction of the gradient, and lr times the decay of the weight."""
    optimizer = training.make_optimizer("adamw", 0.1, weight_decay=0.5)
    params = jnp.asarray([2.0, -4.0])
    changes, _ = jax.jit(optimizer.update)(jnp.asarray([3.0, -0.2]), optimizer.init(params), params)
    np.testing.assert_allclose(changes, [-0.1 - 0.1, 0.1 + 0.2], rtol=1e-6)


@pytest.mark.parametrize("name", training.OPTIMIZERS)
def test_time_constants_do_not_decay(name, x64):
    params = {
        "LIF_0": {"logit_decay": jnp.ones(2)},
        "ALIF_0": {"logit_decay_a": jnp.ones(2)},
        "w": jnp.ones(2),
    }
    optimizer = training.make_optimizer(name, 0.1, weight_decay=0.5)
    changes, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert not changes["LIF_0"]["logit_decay"].any() and not changes["ALIF_0"]["logit_decay_a"].any()
    np.testing.assert_allclose(changes["w"], -0.05, rtol=1e-12)


def test_cosine_per_epoch(x64):
    schedule = jax.jit(jax.vmap(training.cosine_per_epoch(0.1, epochs=4, steps_per_epoch=5)))
    found = schedule(jnp.asarray([0, 4, 5, 9, 10, 14, 15, 19, 20, 50]))
    second, fourth = 0.0853553390593, 0.0146446609407  # 0.05 (1 +- 1 / sqrt(2))
    expected = [0.1, 0.1, second, second, 0.05, 0.05, fourth, fourth, 0, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-16)


@pytest.mark.parametrize(
    ("args", "settings", "message"),
    [
        (("adam", 0.1), {}, "must be one of .*sgd.*adamw.* got 'adam'"),
        (("sgd", 0.1), {"weight_decay": -1.0}, "weight_decay must be >= 0, got -1"),
        (("sgd", 0.1), {"momentum": 1.0}, "momentum must be in 0..1, got 1"),
    ],
)
def test_wrong_optimizers(args, settings, message):
    with pytest.raises(ValueError, match=message):
        training.make_optimizer(*args, **settings)
