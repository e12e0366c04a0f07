"""State dicts that do not fit a network are refused, and what differs in structure is said."""

from functools import partial

import jax
import numpy as np
import pytest

from sltt_jax import functional
from sltt_jax.models import MLP, VGG, SpikingResNet
from sltt_jax.models.torch_weights import from_torch, to_torch
from tests.common.torch_weights import MODELS, model_and_input, state_dict

pytestmark = pytest.mark.usefixtures("quick_compile")

every_model = pytest.mark.parametrize("name", MODELS)


def refusal(model, arrays):
    with pytest.raises(ValueError) as error:
        from_torch(model, arrays)
    first, *lines = str(error.value).splitlines()
    return first, [line.removeprefix("  ") for line in lines]


def test_three_readouts_are_not_one():
    arrays = state_dict("vgg")
    weight, bias = arrays.pop("classifier.1.weight"), arrays.pop("classifier.1.bias")
    arrays |= {"classifier.0.weight": weight, "classifier.0.bias": bias, "classifier.3.weight": weight}
    first, lines = refusal(model_and_input("vgg")[0], arrays)
    assert first.startswith("the state dict does not fit VGG(")
    assert lines == ["fully connected layers: 1568 to 5, 1568 to 5, not 1568 to 5"]


def spiking(cls, **fields):
    """A state dict of a small network of torchvision's and SpikingJelly's kind."""
    model = cls(classes=5, width=1 / 16, **fields)
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    variables = jax.eval_shape(partial(functional.init, model), jax.random.key(0), x)
    zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), variables)
    return to_torch(model, *zeros)


def test_what_differs_in_structure_is_said():
    resnet, vgg = model_and_input("resnet")[0], model_and_input("vgg")[0]
    post = spiking(SpikingResNet, blocks=(2, 1))
    _, lines = refusal(resnet, {key: x for key, x in post.items() if "num_batches" not in key})
    assert lines == [
        "first convolution: 7x7 to 4 channels, not 3x3 to 4 channels",
        "biases of the convolutions: no, not yes",
        "shortcuts that change the shape: a convolution and a normalisation, not a convolution",
        "order in a block: convolve first, not normalise first",
    ]
    _, lines = refusal(vgg, post)
    assert "layers: in residual blocks, not one after the other" in lines
    _, lines = refusal(SpikingResNet(blocks=(2, 2), classes=5, width=1 / 16), post)
    assert lines == ["blocks of each stage: 2, 1, not 2, 2"]
    # A bottleneck block has a third convolution.
    bottleneck = {
        **post,
        **{f"layer1.{i}.conv3.weight": np.zeros((16, 4, 1, 1)) for i in range(2)},
        "layer2.0.conv3.weight": np.zeros((32, 8, 1, 1)),
    }
    _, lines = refusal(SpikingResNet(blocks=(2, 1), classes=5, width=1 / 16), bottleneck)
    assert lines == ["channels of each stage: 16, 32, not 4, 8", "convolutions of a block: 3, not 2"]
    # torchvision's VGG without normalisation.
    bare = {key: x for key, x in spiking(VGG, convs=(1, 2, 1, 1, 1)).items() if x.ndim != 1 or "bias" in key}
    bare = {key: x for key, x in bare.items() if "num_batches" not in key}
    assert "normalisation: none, not of batches" in refusal(vgg, bare)[1]
    _, lines = refusal(VGG((1, 2, 1, 1, 1), 5, hidden=(16,), width=1 / 16), state_dict("vgg"))
    assert lines == ["fully connected layers: 1568 to 5, not 1568 to 16, 16 to 5"]


def test_layers_are_told_in_the_order_of_their_numbers():
    """A state dict may be sorted by name, where 11 stands before 4."""
    arrays = dict(sorted(spiking(VGG, convs=(1, 2, 1, 1, 1), hidden=(16,)).items(), reverse=True))
    _, lines = refusal(VGG((1, 2, 1, 1, 2), 5, hidden=(16,), width=1 / 16), arrays)
    assert lines == ["channels of the convolutions: 4, 8, 8, 16, 32, 32, not 4, 8, 8, 16, 32, 32, 32"]


def test_all_that_does_not_fit_is_listed():
    """Where the structure is the same."""
    arrays = state_dict()
    del arrays["bn1.running_var"], arrays["layer1.0.conv2.bias"]
    arrays["extra"] = np.zeros(3)
    arrays["layer1.1.bn2.weight"] = np.zeros(5)
    first, lines = refusal(model_and_input("resnet")[0], arrays)
    assert first == "the state dict does not fit ResNet(blocks=(2, 1), classes=5, width=0.0625)"
    assert lines == [
        "missing: layer1.0.conv2.bias, bn1.running_var",
        "unexpected: extra",
        "misshapen: layer1.1.bn2.weight is (5,), not (4,)",
    ]


@every_model
def test_state_dicts_of_no_sense_are_refused(name):
    """Whatever is missing or misshapen in them."""
    model, whole = model_and_input(name)[0], state_dict(name)
    rng = np.random.default_rng(0)
    for _ in range(15):
        kept = {key: x for key, x in whole.items() if rng.random() < 0.5}
        kept |= {key: np.zeros(rng.integers(0, 3, rng.integers(0, 5))) for key in kept if rng.random() < 0.2}
        first, lines = refusal(model, kept)
        assert first.startswith(f"the state dict does not fit {type(model).__name__}(") and lines


def test_counters_may_be_missing():
    arrays = {k: x for k, x in state_dict().items() if "num_batches" not in k}
    assert len(arrays) < len(state_dict())
    from_torch(model_and_input("resnet")[0], arrays)


def test_other_models_are_refused():
    for convert in (lambda m: from_torch(m, {}), lambda m: to_torch(m, {"x": {"kernel": np.zeros(1)}}, {})):
        with pytest.raises(TypeError, match="has no MLP"):
            convert(MLP())
