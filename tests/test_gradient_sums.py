"""Sums of gradients, whose small arrays lie end to end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax.gradient_sums import GradientSum


def parameters(dtype=jnp.float32):
    shapes = {"a": (3,), "b": (2, 3), "c": (), "d": (4,), "e": (2, 2, 1)}
    rng = np.random.default_rng(0)
    return {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_sum_is_that_of_each_array(dtype):
    grads = parameters(dtype)
    total = GradientSum.zeros(grads)
    assert [a.shape for a in (*total.large, *total.small)] == [(2, 3), (2, 2, 1), (8,)]
    for _ in range(3):
        total = total + grads
    expected = jax.tree.map(lambda g: 3 * g.astype(jnp.float32), grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), total.tree(), expected)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), halved(total).tree(), halved(total.tree()))


def halved(tree):
    return jax.tree.map(lambda g: g / 2, tree)


def test_arrays_of_different_types_lie_apart(x64):
    grads = {"a": jnp.ones(3), "b": jnp.ones(2, jnp.float32), "c": jnp.full(2, 2.0)}
    total = GradientSum.zeros(grads) + grads
    assert sorted((a.dtype.name, len(a)) for a in total.small) == [("float32", 2), ("float64", 5)]
    jax.tree.map(np.testing.assert_array_equal, total.tree(), grads)


def test_parameters_may_all_be_large_or_all_small():
    for shape, lengths in (((2, 3), []), ((3,), [6])):
        grads = [jnp.ones(shape), jnp.full(shape, 2.0)]
        total = GradientSum.zeros(grads) + grads
        assert [len(a) for a in total.small] == lengths
        jax.tree.map(np.testing.assert_array_equal, total.tree(), grads)
