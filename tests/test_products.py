import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

from sltt_jax import functional, losses, products, rules
from sltt_jax.analysis import flops
from sltt_jax.convolution import conv_general_dilated
from sltt_jax.models import ConvNet

NHWC = ("NHWC", "HWIO", "NHWC")
on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="for CPUs")


def operands(window=(3, 3), size=(9, 10), dtype=np.float64):
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=s), dtype) for s in ((2, *size, 4), (*window, 4, 5)))


def direct(x, w, strides, pads):
    return lax.conv_general_dilated(x, w, strides, pads, dimension_numbers=NHWC)


@pytest.mark.parametrize("window", [(1, 1), (3, 3), (5, 2)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("pads", [((0, 0), (0, 0)), ((1, 1), (1, 1)), ((2, 1), (0, 3))])
def test_it_is_the_convolution(x64, window, strides, pads):
    x, w = operands(window)
    y = direct(x, w, strides, pads)
    assert jnp.abs(y).max() > 0.1
    np.testing.assert_allclose(products.convolve(x, w, strides, pads), y, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("window", [(1, 1), (3, 3), (5, 2)])
@pytest.mark.parametrize("pads", [((0, 0), (0, 0)), ((1, 1), (1, 1)), ((2, 1), (0, 3)), ((5, 4), (3, 2))])
def test_it_is_its_gradient(x64, window, pads):
    x, w = operands(window)
    y, backward = jax.vjp(lambda x, w: direct(x, w, (1, 1), pads), x, w)
    g = jnp.cos(y)
    dx, dw = backward(g)
    assert jnp.abs(dx).max() > 0.1 and jnp.abs(dw).max() > 0.1
    close = dict(rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(products.input_gradient(w, g, x.shape[1:3], pads), dx, **close)
    np.testing.assert_allclose(products.window_gradient(x, window, g, pads), dw, **close)


def test_sums_are_in_float32():
    """Of bfloat16 the result is that of float32, rounded once."""
    x, w = operands(dtype=jnp.bfloat16)
    pads = (1, 1), (1, 1)
    exact = direct(x.astype(jnp.float32), w.astype(jnp.float32), (1, 1), pads)
    y = products.convolve(x, w, (1, 1), pads)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), exact, rtol=2**-8, atol=1e-5)


def compiled(f, *args):
    return jax.jit(f).lower(*args).compile().as_text()


@on_cpu
def test_it_takes_the_place_of_bfloat16_where_there_are_matrix_units(monkeypatch):
    def loss(x, w, precision=None):
        y = conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC, precision=precision)
        return jnp.square(y.astype(jnp.float32)).sum()

    both = lambda *args: jax.value_and_grad(loss, (0, 1))(*args)
    exact = lambda *args: jax.value_and_grad(loss, (0, 1))(*args, precision=lax.Precision.HIGHEST)
    half, single = operands(dtype=jnp.bfloat16), operands(dtype=np.float32)
    large = operands((5, 5), dtype=jnp.bfloat16)
    for units in (True, False):
        monkeypatch.setattr(products, "matrix_units", lambda units=units: units)
        jax.clear_caches()
        assert (" convolution(" in compiled(both, *half)) == (not units)
        assert " convolution(" in compiled(both, *single)
        assert " convolution(" in compiled(both, *large)
        assert " convolution(" in compiled(exact, *half)


@on_cpu
def test_a_network_trains_the_same_with_it(monkeypatch):
    """The gradient of SLTT in bfloat16, as products and as convolutions; that of BPTT differs from both."""
    model = ConvNet(features=(8, 8), classes=3, dtype=jnp.bfloat16)
    x = jax.random.uniform(jax.random.key(1), (6, 8, 8, 8, 2)) * 2
    y = jnp.arange(8) % 3
    params, state = functional.init(model, jax.random.key(0), x[0])

    def gradient(rule, units):
        monkeypatch.setattr(products, "matrix_units", lambda: units)
        jax.clear_caches()
        f = jax.jit(rule.value_and_grad(functional.applier(model), losses.classification()))
        args = params, state, x, y, jax.random.key(0)
        return ravel_pytree(f(*args)[1])[0], flops(f.trace(*args))

    (ours, count), (plain, same), (other, _) = (
        gradient(*case) for case in ((rules.sltt(), True), (rules.sltt(), False), (rules.bptt(), True))
    )
    distance = lambda a, b: float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
    assert jnp.linalg.norm(plain) > 1e-3
    assert distance(ours, plain) < 0.05 < distance(other, ours)
    assert count == same  # of what is computed, and not of how
