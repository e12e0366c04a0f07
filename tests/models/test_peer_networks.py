"""VGGs and ResNets of spikingjelly, with its weights in ours: logits, statistics and gradients."""

import json
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import functional, losses, rules, surrogate
from sltt_jax.models import VGG, VGG11, SpikingResNet, SpikingResNet18, SpikingResNet34
from sltt_jax.models.torch_weights import from_torch, to_torch, torch_name
from sltt_jax.neurons import Neuron
from tests.common.peer_networks import (
    BLOCKS,
    CLASSES,
    CONVS,
    HIDDEN,
    NETWORKS,
    inputs,
    record,
    summary,
    weights,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

RECORDED = json.loads((Path(__file__).parents[1] / "recorded" / "networks.json").read_text())
NEURON = Neuron(tau=1.5, v_reset=0.0, decay_input=True, surrogate=surrogate.sigmoid(4.0))


def model_of(name):
    if name == "spiking_vgg":
        return VGG(CONVS, CLASSES, NEURON, hidden=HIDDEN, max_pooling=True, width=1 / 16)
    kind, *cnf = name.split()
    sew = cnf[0].lower() if kind == "sew_resnet" else None
    return SpikingResNet(BLOCKS, CLASSES, NEURON, sew, width=1 / 16)


def theirs(name):
    return weights({key: tuple(shape) for key, shape in RECORDED["networks"][name]["shapes"].items()})


def prepared(name):
    """Model, parameters, state and data of a network, with spikingjelly's weights."""
    model = model_of(name)
    params, statistics = from_torch(model, theirs(name))
    xs, labels = inputs(name)
    xs = jnp.asarray(xs.transpose(0, 1, 3, 4, 2))
    return model, params, functional.at_rest(model, statistics, xs[0]), xs, labels


def trained(name, rule):
    """Loss, logits, statistics and gradients in training, under spikingjelly's names."""
    model, params, state, xs, labels = prepared(name)
    f = jax.jit(rule.value_and_grad(functional.applier(model), losses.classification()))
    (_, aux), gradients = f(params, state, xs, labels)
    gradients = to_torch(model, gradients, {}, like=theirs(name))
    moved = to_torch(model, params, aux.state, like=theirs(name))
    return {
        "logits": np.asarray(aux.outputs),
        "loss": float(np.mean(aux.losses)),
        "moved": {key: summary(x, key) for key, x in moved.items() if "running" in key},
        "gradients": {key: summary(x, key) for key, x in gradients.items() if "num_batches" not in key},
    }


def error(one, other):
    """Largest difference of a gradient's numbers, relative to its norm, or to what is negligible."""
    largest = max(norm for norm, *_ in other.values())
    assert one.keys() == other.keys() and largest > 1e-3
    return max(
        np.abs(np.subtract(one[key], other[key])).max() / max(other[key][0], 1e-6 * largest) for key in other
    )


SHORT = "sew_resnet ADD"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == SHORT else pytest.mark.slow) for name in NETWORKS]
)
def test_logits_in_evaluation(name, x64):
    model, params, state, xs, _ = prepared(name)
    evaluate = partial(functional.applier(model, train=False), temporal_gradient=True)
    logits, _ = jax.jit(evaluate)(params, state, xs)
    expected = RECORDED["networks"][name]["evaluated"]
    np.testing.assert_allclose(logits, expected, rtol=1e-10, atol=1e-12)
    for other in set(NETWORKS) - {name}:
        assert np.abs(logits - np.array(RECORDED["networks"][other]["evaluated"])).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_training_is_that_of_spikingjelly(name, x64):
    got, expected = trained(name, rules.bptt()), RECORDED["networks"][name]
    np.testing.assert_allclose(got["logits"], np.sum(expected["logits"], 0), rtol=1e-10, atol=1e-12)
    assert abs(got["loss"] - expected["loss"]) <= 1e-10 * expected["loss"]
    assert error(got["moved"], expected["moved"]) <= 1e-10
    assert error(got["gradients"], expected["gradients"]) <= 1e-9
    # Spikes that are joined in another way have another gradient.
    for other in NETWORKS:
        network = RECORDED["networks"][other]
        if other != name and network["gradients"].keys() == expected["gradients"].keys():
            assert error(got["gradients"], network["gradients"]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spiking_vgg", SHORT])
def test_another_rule_has_another_gradient(name, x64):
    gradients = trained(name, rules.sltt())["gradients"]
    assert error(gradients, RECORDED["networks"][name]["gradients"]) > 1e-3


@pytest.mark.slow
def test_what_is_recorded_is_what_spikingjelly_does():
    try:
        installed = version("spikingjelly")
    except PackageNotFoundError:
        pytest.skip("spikingjelly is not installed; the extra peers has it")
    if installed != RECORDED["spikingjelly"]:
        pytest.skip(f"recorded with spikingjelly {RECORDED['spikingjelly']}, {installed} is installed")
    networks = record()["networks"]
    assert networks.keys() == RECORDED["networks"].keys()
    for name, network in networks.items():
        expected = RECORDED["networks"][name]
        assert {k: list(shape) for k, shape in network["shapes"].items()} == expected["shapes"]
        for key in ("evaluated", "logits", "loss"):
            np.testing.assert_allclose(network[key], expected[key], rtol=1e-10, atol=1e-12)
        assert error(network["gradients"], expected["gradients"]) <= 1e-9


WHOLE = {
    "spiking_resnet18": SpikingResNet18(),
    "spiking_resnet34": SpikingResNet34(),
    "sew_resnet18": SpikingResNet18(sew="add"),
    "spiking_vgg11_bn": VGG11(classes=1000, hidden=(4096, 4096), max_pooling=True),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_networks_have_the_names_and_shapes_of_theirs(name):
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    variables = jax.eval_shape(partial(functional.init, WHOLE[name]), jax.random.key(0), x)
    variables = jax.tree.map(lambda a: np.broadcast_to(np.bool_(False), a.shape), variables)  # a byte each
    shapes = {key: tuple(shape) for key, shape in RECORDED["whole"][name].items()}
    assert {k: x.shape for k, x in to_torch(WHOLE[name], *variables, like=list(shapes)).items()} == shapes


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_return_under_the_names_and_in_the_order_they_had(name):
    """Counters of batches too; the names are spikingjelly's."""
    model, state_dict = model_of(name), theirs(name)
    params, statistics = from_torch(model, state_dict)
    back = to_torch(model, params, statistics, like=state_dict)
    assert list(back) == list(state_dict)
    for key, x in state_dict.items():
        np.testing.assert_array_equal(back[key], x, strict=True)


def test_membranes_have_the_names_of_their_neurons():
    model = SpikingResNet18()
    paths = {
        ("lif1", "v"): "sn1",
        ("layer2_0", "lif2", "v"): "layer2.0.sn2",
        ("layer2_0", "downsample_lif", "v"): "layer2.0.downsample_sn",
        ("layer2_0", "downsample_1", "scale"): "layer2.0.downsample.1.weight",
    }
    assert {path: torch_name(model, path) for path in paths} == paths
    assert torch_name(WHOLE["spiking_vgg11_bn"], ("hidden_lif_2", "v")) == "classifier.4"


def test_an_unknown_way_to_join_spikes_is_refused():
    with pytest.raises(ValueError, match="sew must be one of add, and, iand or None, got 'ADD'"):
        SpikingResNet18(sew="ADD")
