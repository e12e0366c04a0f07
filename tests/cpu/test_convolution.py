import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sltt_jax import convolution, functional, losses, rules
from sltt_jax.cpu.convolution import conv_general_dilated
from sltt_jax.models import ConvNet

NHWC = ("NHWC", "HWIO", "NHWC")
CANONICAL = "b01f_01io->b01f"


def gradients(conv, x, w, strides, padding):
    f = lambda x, w: jnp.sin(conv(x, w, strides, padding, dimension_numbers=NHWC)).sum()
    return jax.jit(jax.grad(f, (0, 1)))(x, w)


@pytest.mark.parametrize("kernel", [1, 3, 9])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 3, "SAME"])
@pytest.mark.parametrize("size", [3, 9])
def test_gradients_are_those_of_lax(x64, kernel, stride, padding, size):
    if padding != "SAME" and size + 2 * padding < kernel:
        padding = "SAME"  # nothing would come out
    rng = np.random.default_rng(0)
    x, w = (
        jnp.asarray(rng.normal(size=(2, size, size + 1, 3))),
        jnp.asarray(rng.normal(size=(kernel, kernel, 3, 4))),
    )
    pads = padding if padding == "SAME" else [(padding, padding)] * 2
    args = x, w, (stride, stride), pads
    for ours, theirs in zip(
        gradients(conv_general_dilated, *args), gradients(lax.conv_general_dilated, *args), strict=True
    ):
        assert jnp.abs(theirs).max() > 1e-3
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("channels", [2, 40])
@pytest.mark.parametrize("samples", [3, 6])
def test_gradients_of_few_and_of_many_samples(x64, channels, samples):
    """The window's as products, its entries together and apart, and as a convolution."""
    rng = np.random.default_rng(0)
    x, w = (
        jnp.asarray(rng.normal(size=shape)) for shape in ((samples, 9, 10, channels), (3, 3, channels, 5))
    )
    args = x, w, (1, 1), "SAME"
    _, ours = gradients(conv_general_dilated, *args)
    _, theirs = gradients(lax.conv_general_dilated, *args)
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_input_gradients_of_large_windows(x64, stride):
    """More channels than positions: one product in place of a convolution with the window turned around."""
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape)) for shape in ((2, 5, 4, 3), (3, 3, 3, 64)))
    args = x, w, (stride, stride), "SAME"
    ours, _ = gradients(conv_general_dilated, *args)
    theirs, _ = gradients(lax.conv_general_dilated, *args)
    np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    for samples, turned in ((2, False), (40, True)):
        image, g = jnp.zeros((samples, *x.shape[1:])), jnp.zeros((samples, *x.shape[1:3], 64))
        program = jax.make_jaxpr(lambda *a: convolution._input_gradient(*a, (1, 1), ((1, 1),) * 2, None))
        assert (" rev[" in str(program(image, w, g))) == turned


def test_other_convolutions_are_left_to_lax(x64):
    """Groups, dilation and one spatial dimension, through Linen."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 4)))
    for settings in ({"feature_group_count": 2}, {"kernel_dilation": 2}, {"strides": 2, "padding": "CAUSAL"}):
        ours = nn.Conv(6, (3,), conv_general_dilated=conv_general_dilated, **settings)
        theirs = nn.Conv(6, (3,), **settings)
        params = theirs.init(jax.random.key(0), x)
        f = lambda layer: jax.grad(lambda p: jnp.sin(layer.apply(p, x)).sum())(params)  # noqa: B023
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), f(ours), f(theirs))


def convolutions_in_loops(compiled):
    """The `dim_labels` of all convolutions that are not in the entry computation, and what they reverse."""
    labels, entry = [], False
    for line in compiled.as_text().splitlines():
        if line.endswith("{") and not line.startswith(" "):
            entry = line.startswith("ENTRY")
        if " convolution(" in line and not entry:
            labels.append(
                re.search(r"dim_labels=(\S+?)(,|$|\s)", line)[1] + "reversed" * ("reversal" in line)
            )
    return labels


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other backends choose their own form")
@pytest.mark.parametrize("rule", [rules.bptt(), rules.sltt(), rules.sltt(chunk=2), rules.sltt_k(2)], ids=str)
def test_convolutions_of_an_update_are_canonical(rule):
    """XLA's CPU backend runs any other form a hundred times slower in the body of a loop."""
    model = ConvNet(features=(4, 8, 8), classes=3)  # the last layer's window is larger than its 2x2 input
    x, y = jnp.ones((4, 8, 8, 2)), jnp.zeros(4, int)
    params, state = functional.init(model, jax.random.key(0), x)
    f = rule.value_and_grad(functional.applier(model), losses.classification())
    xs = jnp.ones((6, *x.shape))
    compiled = jax.jit(f).lower(params, state, xs, y, jax.random.key(0)).compile()
    labels = convolutions_in_loops(compiled)
    # Three layers forward, their windows' gradients, and two gradients to the input.
    assert len(labels) >= 8
    assert set(labels) == {CANONICAL}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other backends choose their own form")
def test_convolutions_of_lax_are_not():
    """The control: what the test above looks for is there without our convolution."""

    def f(w, xs):
        loss = lambda w, x: jnp.square(
            lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=NHWC)
        ).sum()
        step = lambda total, x: (total + jax.grad(loss)(w, x), None)
        return lax.scan(step, jnp.zeros_like(w), xs)[0]

    compiled = jax.jit(f).lower(jnp.ones((3, 3, 4, 5)), jnp.ones((6, 2, 8, 8, 4))).compile()
    assert set(convolutions_in_loops(compiled)) - {CANONICAL}
