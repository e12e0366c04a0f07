from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.flatten_util import ravel_pytree

from sltt_jax import functional, losses, rules
from sltt_jax.cpu import conv_general_dilated, winograd
from sltt_jax.models import ConvNet

pytestmark = pytest.mark.usefixtures("quick_compile")

NHWC = ("NHWC", "HWIO", "NHWC")
SAME = ((1, 1), (1, 1))
on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="for CPUs")


def direct(x, w, pads=SAME):
    return lax.conv_general_dilated(x, w, (1, 1), pads, dimension_numbers=NHWC)


def operands(shape=(2, 8, 8), channels=3, features=5, dtype=np.float64):
    rng = np.random.default_rng(0)
    sizes = (*shape, channels), (3, 3, channels, features)
    return tuple(jnp.asarray(rng.normal(size=size), dtype) for size in sizes)


@pytest.mark.parametrize(
    "size", [(7, 10), (1, 2), *(pytest.param(size, marks=pytest.mark.slow) for size in ((8, 8), (3, 3)))]
)
def test_it_is_the_convolution_and_its_gradient(x64, size):
    """With all paddings in one program."""
    every = [SAME, ((2, 2), (2, 2)), ((0, 1), (1, 0)), ((3, 1), (2, 4))]
    every = [pads for pads in every if min(n + sum(p) for n, p in zip(size, pads, strict=True)) >= 3]

    @jax.jit
    def both(x, w):
        ours, theirs = [], []
        for pads in every:
            y, backward = jax.vjp(partial(direct, w=w, pads=pads), x)
            g = jnp.cos(y)
            theirs.append((y, *backward(g)))
            ours.append((winograd.convolve(x, w, pads), winograd.input_gradient(w, g, pads)))
        return ours, theirs

    ours, theirs = jax.device_get(both(*operands((2, *size))))
    assert len(theirs) >= 3 and all(np.abs(y).max() > 0.1 for y, _ in theirs)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_it_is_as_exact_as_a_direct_convolution(x64):
    """In float32, on spikes, against float64: the error is less than four times that of a direct one."""
    x, w = operands((8, 16, 16), 64, 64)
    x = (x > 1).astype(x.dtype)
    compute = jax.jit(direct)
    exact = np.asarray(compute(x, w))
    x, w = x.astype(np.float32), w.astype(np.float32)
    error = lambda y: float(np.sqrt(np.square(y - exact).mean() / np.square(exact).mean()))
    ours, theirs = error(jax.jit(partial(winograd.convolve, pads=SAME))(x, w)), error(compute(x, w))
    assert 1e-8 < theirs < 1e-6
    assert ours < 4 * theirs


def count_products(compiled):
    """How many matrix products the compiled program has; Winograd's are 16 a convolution."""
    return compiled.as_text().count(" dot(")


@on_cpu
def test_it_takes_the_place_of_large_convolutions_only():
    def count(f, args):
        return count_products(jax.jit(f).lower(*args).compile())

    conv = partial(conv_general_dilated, window_strides=(1, 1), padding=SAME, dimension_numbers=NHWC)
    large = operands((4, 8, 8), 32, 32, np.float32)
    assert count(conv, large) == 16
    assert count(jax.grad(lambda *a: jnp.square(conv(*a)).sum()), large) == 32  # and the input's gradient
    assert count(direct, large) == 0
    assert count(partial(conv, precision=lax.Precision.HIGHEST), large) == 0
    assert count(partial(conv, window_strides=(2, 2)), large) == 0
    for other in (
        operands((3, 8, 8), 32, 32, np.float32),  # too few outputs
        operands((4, 8, 8), 31, 32, np.float32),  # too few channels
        tuple(a.astype(jnp.bfloat16) for a in large),
    ):
        assert count(conv, other) == 0


@pytest.mark.slow
@on_cpu
def test_rules_agree_with_it():
    """float32 gradients of a network wide enough for it, over chunks; BPTT, which must differ, does."""
    model = ConvNet(features=(32, 32), classes=3)
    x = jnp.asarray(np.random.default_rng(1).uniform(0, 2, (4, 4, 16, 16, 2)), jnp.float32)
    y = jnp.arange(4) % 3
    params, state = functional.init(model, jax.random.key(0, impl="rbg"), x[0])

    def gradient(rule):
        f = jax.jit(rule.value_and_grad(functional.applier(model), losses.classification()))
        compiled = f.lower(params, state, x, y).compile()
        assert count_products(compiled) >= 2 * 16  # the second layer's, forward and backward
        return np.asarray(ravel_pytree(compiled(params, state, x, y)[1])[0])

    sltt, chunked, bptt = (gradient(rule) for rule in (rules.sltt(), rules.sltt(chunk=2), rules.bptt()))
    distance = lambda a, b: np.linalg.norm(a - b) / np.linalg.norm(b)
    assert np.linalg.norm(sltt) > 1e-3
    assert distance(chunked, sltt) < 1e-5
    assert distance(bptt, sltt) > 1e-2
