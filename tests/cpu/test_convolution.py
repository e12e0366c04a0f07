import re
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sltt_jax import functional, losses, rules
from sltt_jax.cpu import conv_general_dilated, convolution
from sltt_jax.models import ConvNet

pytestmark = pytest.mark.usefixtures("quick_compile")

NHWC = ("NHWC", "HWIO", "NHWC")
CANONICAL = "b01f_01io->b01f"
on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="other backends choose their own form")


def gradients(conv, x, w, stride, padding):
    f = lambda x, w: jnp.sin(conv(x, w, (stride, stride), padding, dimension_numbers=NHWC)).sum()
    return jax.grad(f, (0, 1))(x, w)


def operands(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


@pytest.mark.parametrize(
    ("size", "kernel"),
    [
        (9, 1),
        (9, 3),
        (3, 9),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((3, 1), (3, 3), (9, 9))),
    ],
)
def test_gradients_are_those_of_lax(x64, kernel, size):
    """Of all strides and paddings in one program."""
    paddings = [p for p in (0, 1, 3) if size + 2 * p >= kernel] + ["SAME"]
    cases = {
        f"stride {stride}, padding {p}": (stride, p if p == "SAME" else [(p, p)] * 2)
        for stride in (1, 2, 3)
        for p in paddings
    }

    @partial(jax.jit, static_argnums=0)
    def of_all(conv, x, w):
        return {name: gradients(conv, x, w, *case) for name, case in cases.items()}

    args = operands((2, size, size + 1, 3), (kernel, kernel, 3, 4))
    ours, theirs = (
        jax.device_get(of_all(f, *args)) for f in (conv_general_dilated, lax.conv_general_dilated)
    )
    assert all(np.abs(g).max() > 1e-3 for g in jax.tree.leaves(theirs))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("samples", "channels", "features"),
    [
        (3, 2, 5),  # few samples: the window's as one product of all its entries
        (3, 40, 5),  # and as one for each of them
        (6, 2, 5),  # many samples: as a convolution
        (6, 40, 5),
    ],
)
def test_gradients_of_few_and_of_many_samples(x64, samples, channels, features):
    args = operands((samples, 9, 10, channels), (3, 3, channels, features))
    f = jax.jit(gradients, static_argnums=(0, 3, 4))
    ours, theirs = (f(conv, *args, 1, "SAME")[1] for conv in (conv_general_dilated, lax.conv_general_dilated))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_input_gradients_of_large_windows(x64, stride):
    """More channels than positions: one product in place of a convolution with the window turned around."""
    x, w = operands((2, 5, 4, 3), (3, 3, 3, 64))
    f = jax.jit(gradients, static_argnums=(0, 3, 4))
    ours, theirs = (
        f(conv, x, w, stride, "SAME")[0] for conv in (conv_general_dilated, lax.conv_general_dilated)
    )
    chex.assert_trees_all_close(ours, theirs, rtol=1e-10, atol=1e-12)
    for samples, turned in ((2, False), (40, True)):
        image, g = np.zeros((samples, *x.shape[1:])), np.zeros((samples, *x.shape[1:3], 64))
        program = jax.make_jaxpr(lambda *a: convolution._input_gradient(*a, (1, 1), ((1, 1),) * 2, None))
        assert (" rev[" in str(program(image, w, g))) == turned


def test_other_convolutions_are_left_to_lax(x64):
    """Groups, dilation and one spatial dimension, through Linen."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 4)))
    for settings in ({"feature_group_count": 2}, {"kernel_dilation": 2}, {"strides": 2, "padding": "CAUSAL"}):
        ours = nn.Conv(6, (3,), conv_general_dilated=conv_general_dilated, **settings)
        theirs = nn.Conv(6, (3,), **settings)
        params = jax.jit(theirs.init)(jax.random.key(0), x)
        f = jax.jit(
            lambda layer, p: jax.grad(lambda p: jnp.sin(layer.apply(p, x)).sum())(p), static_argnums=0
        )
        chex.assert_trees_all_close(f(ours, params), f(theirs, params), rtol=1e-10)


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


@on_cpu
@pytest.mark.parametrize(
    "rule",
    [
        rules.sltt(chunk=2),
        *(pytest.param(r, marks=pytest.mark.slow) for r in (rules.bptt(), rules.sltt_k(2))),
    ],
    ids=str,
)
def test_convolutions_of_an_update_are_canonical(rule):
    """XLA's CPU backend runs any other form a hundred times slower in the body of a loop.

    The block of SLTT-K is that of SLTT, in a branch.
    """
    model = ConvNet(features=(4, 8, 8), classes=3)  # the last layer's window is larger than its 2x2 input
    x = jax.ShapeDtypeStruct((4, 8, 8, 2), jnp.float32)
    params, state = jax.eval_shape(partial(functional.init, model), jax.random.key(0), x)
    xs, y = jax.ShapeDtypeStruct((6, *x.shape), x.dtype), jax.ShapeDtypeStruct((4,), jnp.int32)
    f = jax.jit(rule.value_and_grad(functional.applier(model), losses.classification()))
    compiled = f.lower(params, state, xs, y, jax.random.key(0)).compile()
    labels = convolutions_in_loops(compiled)
    # Three layers forward, their windows' gradients, and two gradients to the input.
    assert len(labels) >= 8
    assert set(labels) == {CANONICAL}


@on_cpu
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
