"""The paper's networks: their sizes and initial weights."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import functional, models
from sltt_jax.layers import MEMBRANE
from sltt_jax.models.nf_resnet import betas

pytestmark = pytest.mark.usefixtures("quick_compile")

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
        pytest.param(models.ResNet34(), RESNET, 21_288_778, 33, marks=pytest.mark.slow),
        (VGG11(), DVS, 9_476_298, 8),
        (VGG11(classes=11), (1, 128, 128, 2), 9_501_387, 8),
        pytest.param(models.VGG13(), DVS, 9_661_194, 10, marks=pytest.mark.slow),
        pytest.param(models.VGG16(), DVS, 14_973_450, 13, marks=pytest.mark.slow),
        pytest.param(models.VGG19(), DVS, 20_285_706, 16, marks=pytest.mark.slow),
        (NFResNet34(), IMAGENET, 21_797_688, 32),
        (models.NFResNet50(), IMAGENET, 25_557_048, 48),
        pytest.param(models.NFResNet101(), (1, 224, 224, 3), 44_549_193, 99, marks=pytest.mark.slow),
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


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_images_of_the_wrong_size_are_refused():
    resnet = ResNet18(blocks=(1, 1, 1, 1))
    shapes(resnet, (1, 25, 56, 3))
    shapes(resnet, (1, 8, 8, 3))
    for model, x, message in (
        (resnet, (1, 57, 32, 3), "too large"),
        (VGG11(), (1, 48, 31, 2), "at least 32x32"),
        (NFResNet34(), (64, 64, 3), "takes inputs"),
    ):
        with pytest.raises(ValueError, match=message):
            shapes(model, x)
