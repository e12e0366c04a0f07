"""The paper's networks: sizes, initial weights, and what makes them different from other ResNets and VGGs."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import functional, losses, models, rules
from sltt_jax.layers import FIRING_RATE, LIF, MEMBRANE, ScaledWSConv
from sltt_jax.models.nf_resnet import betas
from sltt_jax.models.vgg import adaptive_avg_pool
from sltt_jax.neurons import Neuron

ResNet18, VGG11, NFResNet34 = models.ResNet18, models.VGG11, models.NFResNet34
RESNET, DVS, IMAGENET = (2, 32, 32, 3), (2, 48, 48, 2), (2, 64, 64, 3)


def shapes(model, x):
    """Shapes of parameters and state."""
    x = jax.ShapeDtypeStruct(x, jnp.float32)
    return jax.eval_shape(partial(functional.init, model), jax.random.key(0), x)


def count(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("model", "x", "parameters", "neurons"),
    [
        (ResNet18(), RESNET, 11_176_906, 17),
        (ResNet18(classes=100), RESNET, 11_223_076, 17),
        (models.ResNet34(), RESNET, 21_288_778, 33),
        (VGG11(), DVS, 9_476_298, 8),
        (VGG11(classes=11), (1, 128, 128, 2), 9_501_387, 8),
        (models.VGG13(), DVS, 9_661_194, 10),
        (models.VGG16(), DVS, 14_973_450, 13),
        (models.VGG19(), DVS, 20_285_706, 16),
        (NFResNet34(), IMAGENET, 21_797_688, 32),
        (models.NFResNet50(), IMAGENET, 25_557_048, 48),
        (models.NFResNet101(), (1, 224, 224, 3), 44_549_193, 99),
    ],
)
def test_parameters_and_neurons(model, x, parameters, neurons):
    params, state = shapes(model, x)
    assert count(params) == parameters
    assert len(jax.tree.leaves(state[MEMBRANE])) == neurons
    assert jax.tree.leaves(state[MEMBRANE])[0].shape[0] == x[0]


@pytest.mark.parametrize(
    ("model", "x", "channels"),
    [
        (ResNet18, RESNET, {19, 38, 77, 154}),
        (VGG11, DVS, {19, 38, 77, 154}),
        (NFResNet34, IMAGENET, {19, 38, 77, 154}),
        (models.NFResNet50, IMAGENET, {19, 38, 77, 154, 4 * 19, 4 * 38, 4 * 77, 4 * 154}),
    ],
)
def test_width_multiplies_all_channels(model, x, channels):
    params, _ = shapes(model(width=0.3, classes=7), x)
    kernels = [p.shape for p in jax.tree.leaves(params) if p.ndim == 4]
    assert {shape[-1] for shape in kernels} == channels
    assert {shape[-2] for shape in kernels} <= {x[-1]} | channels
    (readout,) = (p.shape for p in jax.tree.leaves(params) if p.ndim == 2)
    assert readout == (
        {ResNet18: 154, VGG11: 49 * 154, NFResNet34: 154, models.NFResNet50: 4 * 154}[model],
        7,
    )


def initial(model, x, select=lambda params: params):
    """Some of the initial parameters; what is not selected is not compiled. This key compiles fastest."""
    key = jax.random.key(3, impl="rbg")
    return jax.jit(lambda key: select(functional.init(model, key, jnp.zeros(x))[0]))(key)


def assert_kaiming_fan_out(kernel):
    """Normal, not truncated, of the standard deviation of Kaiming's fan out with the gain of a ReLU."""
    *window, _, features = kernel.shape
    std = math.sqrt(2 / (features * math.prod(window)))
    np.testing.assert_allclose(kernel.std(), std, rtol=6 / math.sqrt(2 * kernel.size))
    assert jnp.abs(kernel).max() > 3.3 * std or kernel.size < 10_000


def assert_uniform(values, fan_in):
    bound = fan_in**-0.5
    assert jnp.abs(values).max() <= bound
    np.testing.assert_allclose(jnp.abs(values).mean(), bound / 2, rtol=4 / math.sqrt(3 * values.size))


def test_initial_weights_of_resnet():
    stem, resized, last, bn, linear = initial(
        ResNet18(width=0.5),
        RESNET,
        lambda p: (p["conv1"], p["layer2_0"], p["layer4_1"]["conv2"], p["bn1"], p["linear"]),
    )
    assert stem.keys() == {"kernel"}
    for layer in (stem, resized["shortcut"], resized["conv1"], last):
        assert_kaiming_fan_out(layer["kernel"])
    assert_uniform(resized["shortcut"]["bias"], 32)
    assert_uniform(resized["conv1"]["bias"], 9 * 32)
    assert_uniform(last["bias"], 9 * 256)
    assert_uniform(linear["kernel"], 256)
    np.testing.assert_array_equal(linear["bias"], 0)
    np.testing.assert_array_equal(bn["scale"], 1)
    np.testing.assert_array_equal(bn["bias"], 0)


def test_initial_weights_of_vgg():
    *convs, classifier = initial(
        VGG11(width=0.25), DVS, lambda p: (p["conv1_1"], p["conv3_2"], p["conv5_2"], p["classifier"])
    )
    for layer in convs:
        assert_kaiming_fan_out(layer["kernel"])
        np.testing.assert_array_equal(layer["bias"], 0)
    np.testing.assert_allclose(classifier["kernel"].std(), 0.01, rtol=0.02)
    np.testing.assert_array_equal(classifier["bias"], 0)


def test_initial_weights_of_nf_resnet():
    *convs, gain, fc = initial(
        models.NFResNet50(width=0.25, classes=300),
        IMAGENET,
        lambda p: (
            p["conv1"],
            p["layer1_0"]["downsample"],
            p["layer3_1"]["conv3"],
            p["layer1_0"]["skipinit_gain"],
            p["fc"],
        ),
    )
    for layer in convs:
        assert_kaiming_fan_out(layer["kernel"])
        np.testing.assert_array_equal(layer["bias"], 0)
        np.testing.assert_array_equal(layer["gain"], 1)
    assert gain == 0
    np.testing.assert_array_equal(fc["kernel"], 0)
    assert_uniform(fc["bias"], 512)


def test_nf_resnet_starts_without_residual_branches():
    """Whatever the weights of the branches, the logits are those of the shortcuts alone."""
    model = NFResNet34(blocks=(2, 1), width=1 / 16, classes=5)
    x = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    params, state = jax.jit(lambda x: functional.init(model, jax.random.key(1, impl="rbg"), x))(x)
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


def test_betas():
    """The lists of NF-ResNet-34; a bottleneck's first shortcut is a convolution as well."""
    expected = [
        [1, 1.0198, 1.0392],
        [1.0583, 1.0198, 1.0392, 1.0583],
        [1.0770, 1.0198, 1.0392, 1.0583, 1.0770, 1.0954],
        [1.1136, 1.0198, 1.0392],
    ]
    for found, stage in zip(betas((3, 4, 6, 3), (False, True, True, True)), expected, strict=True):
        np.testing.assert_allclose(found, stage, atol=5e-5)
    assert betas((3, 4, 6, 3), (True,) * 4) == betas((3, 4, 6, 3), (False, True, True, True))
    assert betas((2, 1), (True, False)) == [[1.0, math.sqrt(1.04)], [math.sqrt(1.08)]]


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
    found = adaptive_avg_pool(jnp.asarray(x), 7)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, adaptive_by_hand(x, 7), atol=1e-15)


def test_adaptive_avg_pool_of_a_single_pixel_repeats_it():
    x = jax.random.normal(jax.random.key(0), (2, 1, 1, 3))
    np.testing.assert_array_equal(adaptive_avg_pool(x, 7), jnp.broadcast_to(x, (2, 7, 7, 3)))


def test_scaled_weight_standardisation(x64):
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 5, 4))
    layer = ScaledWSConv(6, (3, 3), padding=1)
    params = layer.init(jax.random.key(1), x)["params"]
    params["gain"] = jnp.arange(1.0, 7)
    params["bias"] = jnp.arange(6.0)
    flat = np.asarray(params["kernel"]).reshape(-1, 6)
    std = np.sqrt(flat.var(0, ddof=1) * 36 + 1e-4)
    kernel = (np.arange(1, 7) * (flat - flat.mean(0)) / std).reshape(3, 3, 4, 6)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
    expected = np.einsum("tbhwcij,ijco->tbhwo", windows, kernel) + np.arange(6)
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "size", "path"),
    [
        (ResNet18(blocks=(1,), width=1 / 8, dropout=0.5), 4, ("layer1_0", "lif2", "Dropout_0")),
        (VGG11(width=1 / 8, dropout=0.5), 32, ("lif1_1", "Dropout_0")),
    ],
)
def test_dropout_mask_is_the_same_at_every_step(model, size, path):
    *inside, lif, dropout = path
    xs = 2 * jax.random.normal(jax.random.key(0), (6, 3, size, size, 2))
    params, start = jax.jit(lambda x: functional.init(model, jax.random.key(1, impl="rbg"), x))(xs[0])

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

    before, after, _ = spikes(xs, start, jax.random.key(2))
    kept = after.max(0) > 0
    # A neuron reaches the next layer with all of its spikes, doubled, or with none.
    np.testing.assert_array_equal(after, 2 * before * kept)
    active = before.max(0) > 0
    assert 0.4 < kept[active].mean() < 0.6
    # Every sample has a mask of its own, and every update.
    both = active[0] & active[1]
    assert 0.3 < (kept[0] == kept[1])[both].mean() < 0.7
    _, other, _ = spikes(xs, start, jax.random.key(3))
    assert 0.3 < ((other.max(0) > 0) == kept)[active].mean() < 0.7
    # Blocks of one step are given the same key, and there is no dropout in evaluation.
    state = start
    for x, expected in zip(xs, after, strict=True):
        _, one, state = spikes(x[None], state, jax.random.key(2))
        np.testing.assert_array_equal(one[0], expected)
    before, after, _ = spikes(xs, start, jax.random.key(2), train=False)
    np.testing.assert_array_equal(after, before)


def test_images_of_the_wrong_size_are_refused():
    shapes(ResNet18(), (1, 25, 56, 3))
    shapes(ResNet18(), (1, 8, 8, 3))
    for model, x, message in (
        (ResNet18(), (1, 57, 32, 3), "too large"),
        (VGG11(), (1, 48, 31, 2), "at least 32x32"),
        (NFResNet34(), (64, 64, 3), "takes inputs"),
    ):
        with pytest.raises(ValueError, match=message):
            shapes(model, x)


@pytest.mark.parametrize(("model", "x"), [(ResNet18, RESNET), (VGG11, DVS)])
def test_neurons_of_every_layer_are_live(model, x):
    """At the paper's leak and the initial weights, none is silent and none spikes always."""
    model = model(neuron=Neuron(tau=1.1), width=0.25)
    xs = jax.random.normal(jax.random.key(0), (2, *x))
    params, state = jax.jit(lambda x: functional.init(model, jax.random.key(1, impl="rbg"), x))(xs[0])
    apply = functional.applier(model, record=(FIRING_RATE,))
    (_, recorded), _ = jax.jit(partial(apply, temporal_gradient=False))(params, state, xs)
    rates = [float(rate.mean()) for rate in jax.tree.leaves(recorded)]
    assert 0.02 < min(rates) < max(rates) < 0.6, rates


def lowered(model, rule, T, x):
    """An update without an optimizer, ready to be compiled."""
    x = jax.ShapeDtypeStruct(x, jnp.float32)
    params, state = shapes(model, x.shape)
    xs = jax.ShapeDtypeStruct((T, *x.shape), x.dtype)
    labels = jax.ShapeDtypeStruct(x.shape[:1], jnp.int32)
    f = rule.value_and_grad(functional.applier(model), losses.classification(mse_weight=0.05))
    return jax.jit(f).lower(params, state, xs, labels, jax.eval_shape(lambda: jax.random.key(0)))


@pytest.mark.parametrize(
    "rule", [rules.bptt(), rules.sltt(), rules.sltt(chunk=2), rules.sltt_k(k=2)], ids=str
)
@pytest.mark.parametrize(("model", "x"), [(ResNet18(), RESNET), (VGG11(), DVS)])
def test_programs_do_not_grow_with_time(model, x, rule):
    sizes = [lowered(model, rule, T, x).as_text().count("\n") for T in (4, 8, 32)]
    assert len(set(sizes)) == 1
    assert sizes[0] > 1000
