import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sltt_jax.cpu import dot_general
from sltt_jax.layers import Dense

pytestmark = pytest.mark.usefixtures("quick_compile")

LAST_WITH_FIRST = ((2,), (0,)), ((), ())


def gradients(dot, x, w, numbers=LAST_WITH_FIRST, **kwargs):
    def loss(x, w):
        y = dot(x, w, numbers, **kwargs)
        return jnp.sin(y.astype(jnp.float32)).sum(), y

    grads, y = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, w)
    return y, *grads


def operands(*shapes, dtype=None):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@pytest.mark.parametrize("batch", [(3, 5), (8, 9)], ids=["few rows", "many rows"])
def test_product_and_gradients_are_those_of_lax(x64, batch):
    args = operands((*batch, 7), (7, 4))
    for ours, theirs in zip(gradients(dot_general, *args), gradients(lax.dot_general, *args), strict=True):
        assert jnp.abs(theirs).max() > 0.1
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_half_precision_stays():
    args = operands((8, 9, 7), (7, 4), dtype=jnp.bfloat16)
    for ours, theirs in zip(gradients(dot_general, *args), gradients(lax.dot_general, *args), strict=True):
        chex.assert_type([ours, theirs], jnp.bfloat16)
        np.testing.assert_allclose(*(np.asarray(a, np.float32) for a in (ours, theirs)), rtol=0.02, atol=0.1)


@pytest.mark.parametrize(
    "numbers, shapes, kwargs",
    [
        ((((0,), (0,)), ((), ())), [(7, 64, 2), (7, 4)], {}),
        ((((2,), (0,)), ((), ())), [(8, 9, 7), (7, 4, 3)], {}),
        ((((2,), (1,)), ((0,), (0,))), [(8, 9, 7), (8, 7, 4)], {}),
        (LAST_WITH_FIRST, [(8, 9, 7), (7, 4)], {"preferred_element_type": jnp.float64}),
    ],
)
def test_other_products_are_handed_on(x64, numbers, shapes, kwargs):
    args = operands(*shapes)
    ours, theirs = (gradients(dot, *args, numbers, **kwargs) for dot in (dot_general, lax.dot_general))
    chex.assert_trees_all_equal(ours, theirs)


def test_precision_reaches_all_three_products():
    args = operands((8, 9, 7), (7, 4))
    both = lambda x, w: gradients(dot_general, x, w, precision=lax.Precision.HIGHEST)
    products = re.findall(r"stablehlo.dot_general .*", jax.jit(both).lower(*args).as_text())
    assert len(products) >= 3
    assert all("precision = [HIGHEST, HIGHEST]" in p for p in products)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other platforms are left to XLA")
def test_the_layer_has_no_product_that_reads_across_rows():
    def read(layer):
        x, params = jnp.ones((4, 64, 128)), {"params": {"kernel": jnp.ones((128, 256))}}
        f = jax.grad(lambda p, x: (layer(256, use_bias=False).apply(p, x) ** 2).sum(), (0, 1))
        text = jax.jit(f).lower(params, x).compile().as_text()
        return [int(axis) for axis in re.findall(r"lhs_contracting_dims=\{(\d)\}", text)]

    assert read(Dense) == [1, 1, 1]
    assert sorted(read(nn.Dense)) == [0, 1, 1]
