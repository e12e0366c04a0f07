"""The paper's networks: what makes them different from other ResNets and VGGs, and how they run over time."""

import math
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import functional, losses, rules
from sltt_jax.layers import FIRING_RATE, LIF, ScaledWSConv
from sltt_jax.models import MLP, VGG, VGG11, NFResNet34, ResNet18
from sltt_jax.models.vgg import adaptive_avg_pool
from sltt_jax.neurons import Neuron

pytestmark = pytest.mark.usefixtures("quick_compile")

RESNET, DVS = (2, 32, 32, 3), (2, 48, 48, 2)


def test_nf_resnet_starts_without_residual_branches():
    """Whatever the weights of the branches, the logits are those of the shortcuts alone."""
    model = NFResNet34(blocks=(2,), width=1 / 16, classes=5)
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    params, state = functional.init(model, jax.random.key(1, impl="rbg"), x)
    # Otherwise the pooled noise drives no neuron.
    params["conv1"]["gain"] *= 6.0
    params["fc"]["kernel"] = jax.random.normal(jax.random.key(2), params["fc"]["kernel"].shape)
    apply = jax.jit(partial(functional.applier(model), temporal_gradient=True))
    logits, _ = apply(params, state, x[None])
    other = jax.tree.map(lambda p: p, params)
    other["layer1_1"]["conv2"]["kernel"] += 1.0
    np.testing.assert_array_equal(apply(other, state, x[None])[0], logits)
    other["layer1_1"]["skipinit_gain"] += 1.0
    assert jnp.abs(apply(other, state, x[None])[0] - logits).max() > 1e-3


def adaptive_by_hand(x, size):
    """PyTorch's rule, window by window."""
    *_, height, width, _ = x.shape
    y = np.empty((*x.shape[:-3], size, size, x.shape[-1]))
    for i in range(size):
        rows = slice(math.floor(i * height / size), math.ceil((i + 1) * height / size))
        for j in range(size):
            columns = slice(math.floor(j * width / size), math.ceil((j + 1) * width / size))
            y[..., i, j, :] = x[..., rows, columns, :].mean((-3, -2))
    return y


@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (7, 7), (10, 10), (3, 5), (14, 8)])
def test_adaptive_avg_pool(shape, x64):
    x = np.random.default_rng(0).standard_normal((2, 3, *shape, 4))
    found = jax.jit(adaptive_avg_pool, static_argnums=1)(jnp.asarray(x), 7)
    chex.assert_type(found, jnp.float64)
    np.testing.assert_allclose(found, adaptive_by_hand(x, 7), atol=1e-15)


def test_adaptive_avg_pool_of_a_single_pixel_repeats_it():
    x = jax.random.normal(jax.random.key(0), (2, 1, 1, 3))
    np.testing.assert_array_equal(adaptive_avg_pool(x, 7), jnp.broadcast_to(x, (2, 7, 7, 3)))


def test_scaled_weight_standardisation(x64):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 5, 5, 4))
    layer = ScaledWSConv(6, (3, 3), padding=1)
    params = {"kernel": rng.normal(size=(3, 3, 4, 6)), "gain": np.arange(1.0, 7), "bias": np.arange(6.0)}
    chex.assert_trees_all_equal_shapes(params, jax.eval_shape(layer.init, jax.random.key(1), x)["params"])
    flat = np.asarray(params["kernel"]).reshape(-1, 6)
    std = np.sqrt(flat.var(0, ddof=1) * 36 + 1e-4)
    kernel = (np.arange(1, 7) * (flat - flat.mean(0)) / std).reshape(3, 3, 4, 6)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    expected = np.einsum("tbhwcij,ijco->tbhwo", windows, kernel) + np.arange(6)
    np.testing.assert_allclose(jax.jit(layer.apply)({"params": params}, x), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "shape", "path"),
    [
        (MLP((256,), dropout=0.5), (64,), ("LIF_0", "Dropout_0")),
        pytest.param(
            ResNet18(blocks=(1,), width=1 / 8, dropout=0.5),
            (4, 4, 2),
            ("layer1_0", "lif2", "Dropout_0"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            VGG(convs=(1, 1, 0, 0, 0), width=1 / 8, dropout=0.5),
            (32, 32, 2),
            ("lif1_1", "Dropout_0"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["mlp", "resnet", "vgg"],
)
def test_dropout_mask_is_the_same_at_every_step(model, shape, path):
    *inside, lif, dropout = path
    xs = 2 * np.random.default_rng(0).normal(size=(6, 3, *shape)).astype(np.float32)
    params, start = functional.init(model, jax.random.key(1, impl="rbg"), xs[0])

    @partial(jax.jit, static_argnames="train")
    def spikes(xs, state, key, train=True):
        """What enters and what leaves a dropout, and the state after."""
        _, changed = model.apply(
            {"params": params, **state}, xs, train=train, temporal_gradient=False, rngs={"dropout": key},
            mutable=[*state, "intermediates"],
            capture_intermediates=lambda module, _: isinstance(module, LIF | nn.Dropout),
        )  # fmt: skip
        found = changed.pop("intermediates")
        for name in inside:
            found = found[name]
        return found[lif]["__call__"][0], found[dropout]["__call__"][0], changed

    before, after, _ = jax.device_get(spikes(xs, start, jax.random.key(2)))
    kept = after.max(0) > 0
    # A neuron reaches the next layer with all of its spikes, doubled, or with none.
    np.testing.assert_array_equal(after, 2 * before * kept)
    active = before.max(0) > 0
    assert 0.4 < kept[active].mean() < 0.6
    # Every sample has a mask of its own, and every update.
    both = active[0] & active[1]
    assert 0.3 < (kept[0] == kept[1])[both].mean() < 0.7
    _, other, _ = jax.device_get(spikes(xs, start, jax.random.key(3)))
    assert 0.3 < ((other.max(0) > 0) == kept)[active].mean() < 0.7
    # Blocks of one step are given the same key, and there is no dropout in evaluation.
    state = start
    for x, expected in zip(xs, after, strict=True):
        _, one, state = spikes(x[None], state, jax.random.key(2))
        np.testing.assert_array_equal(one[0], expected)
    before, after, _ = spikes(xs, start, jax.random.key(2), train=False)
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (partial(ResNet18, blocks=(1,)), (2, 4, 4, 3)),
        pytest.param(ResNet18, RESNET, marks=pytest.mark.slow),
        pytest.param(VGG11, DVS, marks=pytest.mark.slow),
    ],
    ids=["one block", "resnet18", "vgg11"],
)
def test_neurons_of_every_layer_are_live(model, x):
    """At the paper's leak and the initial weights, none is silent and none spikes always."""
    model = model(neuron=Neuron(tau=1.1), width=0.25)
    xs = jax.random.normal(jax.random.key(0), (2, *x))
    params, state = functional.init(model, jax.random.key(1, impl="rbg"), xs[0])
    apply = functional.applier(model, record=(FIRING_RATE,))
    (_, recorded), _ = jax.jit(partial(apply, temporal_gradient=False))(params, state, xs)
    rates = [float(rate.mean()) for rate in jax.tree.leaves(recorded)]
    assert 0.02 < min(rates) < max(rates) < 0.6, rates


def lowered(model, rule, T, x):
    """An update without an optimizer, ready to be compiled."""
    x = jax.ShapeDtypeStruct(x, jnp.float32)
    params, state = jax.eval_shape(partial(functional.init, model), jax.random.key(0), x)
    xs = jax.ShapeDtypeStruct((T, *x.shape), x.dtype)
    labels = jax.ShapeDtypeStruct(x.shape[:1], jnp.int32)
    f = rule.value_and_grad(functional.applier(model), losses.classification(mse_weight=0.05))
    return jax.jit(f).lower(params, state, xs, labels, jax.eval_shape(lambda: jax.random.key(0)))


RULES = [rules.bptt(), rules.sltt(), rules.sltt(chunk=2), rules.sltt_k(k=2)]
DEEP = {"resnet18": (ResNet18(), RESNET), "vgg11": (VGG11(), DVS)}


@pytest.mark.parametrize(
    ("model", "x", "rule"),
    [
        *(
            pytest.param(ResNet18(blocks=(1,), width=1 / 16), (2, 4, 4, 3), rule, id=f"one block-{rule}")
            for rule in RULES
        ),
        # It takes seconds to trace a deep network: every rule has one of them.
        *(
            pytest.param(*DEEP[name], rule, id=f"{name}-{rule}", marks=pytest.mark.slow)
            for name, rule in zip(("vgg11", "resnet18", "vgg11", "resnet18"), RULES, strict=True)
        ),
    ],
)
def test_programs_do_not_grow_with_time(model, x, rule):
    short, long = (lowered(model, rule, T, x).as_text().count("\n") for T in (4, 32))
    assert short == long > 200
