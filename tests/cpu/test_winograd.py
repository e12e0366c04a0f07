import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

from sltt_jax import functional, losses, products, rules, winograd
from sltt_jax.cpu.convolution import conv_general_dilated
from sltt_jax.models import ConvNet

NHWC = ("NHWC", "HWIO", "NHWC")
SAME = ((1, 1), (1, 1))
on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="for CPUs")


def direct(x, w, pads=SAME):
    return lax.conv_general_dilated(x, w, (1, 1), pads, dimension_numbers=NHWC)


def operands(shape=(2, 8, 8), channels=3, features=5, dtype=np.float64):
    rng = np.random.default_rng(0)
    sizes = (*shape, channels), (3, 3, channels, features)
    return tuple(jnp.asarray(rng.normal(size=size), dtype) for size in sizes)


@pytest.mark.parametrize("size", [(8, 8), (7, 10), (1, 2), (3, 3)])
@pytest.mark.parametrize("pads", [SAME, ((2, 2), (2, 2)), ((0, 1), (1, 0)), ((3, 1), (2, 4))])
def test_it_is_the_convolution_and_its_gradient(x64, size, pads):
    x, w = operands((2, *size))
    if min(n + sum(p) for n, p in zip(size, pads, strict=True)) < 3:
        pads = SAME  # nothing would come out
    y, backward = jax.vjp(lambda x: direct(x, w, pads), x)
    assert jnp.abs(y).max() > 0.1
    np.testing.assert_allclose(winograd.convolve(x, w, pads), y, rtol=1e-11, atol=1e-12)
    g = jnp.cos(y)
    np.testing.assert_allclose(winograd.input_gradient(w, g, pads), *backward(g), rtol=1e-11, atol=1e-12)


def test_it_is_as_exact_as_a_direct_convolution(x64):
    """In float32, on spikes, against float64: the error is less than four times that of a direct one."""
    x, w = operands((8, 16, 16), 64, 64)
    x = (x > 1).astype(x.dtype)
    exact = direct(x, w)
    x, w = x.astype(np.float32), w.astype(np.float32)
    error = lambda y: float(jnp.sqrt(jnp.square(y - exact).mean() / jnp.square(exact).mean()))
    ours, theirs = error(winograd.convolve(x, w, SAME)), error(direct(x, w))
    assert 1e-8 < theirs < 1e-6
    assert ours < 4 * theirs


def count_products(f, *args):
    """How many matrix products the compiled program has; Winograd's are 16 a convolution."""
    compiled = jax.jit(f).lower(*args).compile()
    return compiled.as_text().count(" dot(")


@on_cpu
def test_it_takes_the_place_of_large_convolutions_only(monkeypatch):
    monkeypatch.setattr(products, "matrix_units", lambda: False)
    conv = lambda x, w: conv_general_dilated(x, w, (1, 1), SAME, dimension_numbers=NHWC)
    large = operands((4, 8, 8), 32, 32, np.float32)
    assert count_products(conv, *large) == 16
    assert (
        count_products(jax.grad(lambda *a: jnp.square(conv(*a)).sum()), *large) == 32
    )  # and the input's gradient
    assert count_products(direct, *large) == 0
    exact = lambda x, w: conv_general_dilated(
        x, w, (1, 1), SAME, dimension_numbers=NHWC, precision=lax.Precision.HIGHEST
    )
    strided = lambda x, w: conv_general_dilated(x, w, (2, 2), SAME, dimension_numbers=NHWC)
    assert count_products(exact, *large) == count_products(strided, *large) == 0
    for other in (
        operands((3, 8, 8), 32, 32, np.float32),  # too few outputs
        operands((4, 8, 8), 31, 32, np.float32),  # too few channels
        tuple(a.astype(jnp.bfloat16) for a in large),
    ):
        assert count_products(conv, *other) == 0


@on_cpu
def test_rules_agree_with_it():
    """float32 gradients of a network wide enough for it, over chunks; BPTT, which must differ, does."""
    model = ConvNet(features=(32, 32, 32), classes=3)
    x = jax.random.uniform(jax.random.key(1), (6, 16, 16, 16, 2)) * 2
    y = jnp.arange(16) % 3
    params, state = functional.init(model, jax.random.key(0), x[0])

    def gradient(rule):
        f = rule.value_and_grad(functional.applier(model), losses.classification())
        args = params, state, x, y, jax.random.key(0)
        assert count_products(f, *args) >= 2 * 16 * 2  # two layers, forward and backward
        out = jax.jit(f)(*args)
        return ravel_pytree(out[1])[0]

    sltt, chunked, bptt = (gradient(rule) for rule in (rules.sltt(), rules.sltt(chunk=3), rules.bptt()))
    distance = lambda a, b: float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
    assert jnp.linalg.norm(sltt) > 1e-3
    assert distance(chunked, sltt) < 1e-5
    assert distance(bptt, sltt) > 1e-2
