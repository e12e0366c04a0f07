"""VGGs and ResNets of spikingjelly, with its weights in ours: logits, statistics and gradients."""

import json
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import functional, losses, rules, surrogate
from sltt_jax.models import VGG, SpikingResNet
from sltt_jax.models.torch_weights import from_torch, to_torch
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


@cache
def ours(name, rule):
    """Logits in evaluation, and loss, logits, statistics and gradients in training, under their names."""
    model, state_dict = model_of(name), theirs(name)
    params, statistics = from_torch(model, state_dict)
    xs, labels = inputs(name)
    xs = jnp.asarray(xs.transpose(0, 1, 3, 4, 2))
    state = functional.at_rest(model, statistics, xs[0])
    evaluate = partial(functional.applier(model, train=False), temporal_gradient=True)
    evaluated, _ = jax.jit(evaluate)(params, state, xs)
    f = jax.jit(rule.value_and_grad(functional.applier(model), losses.classification()))
    (_, aux), gradients = f(params, state, xs, labels)
    gradients = to_torch(model, gradients, {}, like=state_dict)
    moved = to_torch(model, params, aux.state, like=state_dict)
    return {
        "evaluated": np.asarray(evaluated),
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


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_same_network_as_in_spikingjelly(name, x64):
    expected = RECORDED["networks"][name]
    got = ours(name, rules.bptt())
    np.testing.assert_allclose(got["evaluated"], expected["evaluated"], rtol=1e-10, atol=1e-12)
    assert np.ptp(expected["evaluated"]) > 0.1
    np.testing.assert_allclose(got["logits"], np.sum(expected["logits"], 0), rtol=1e-10, atol=1e-12)
    assert abs(got["loss"] - expected["loss"]) <= 1e-10 * expected["loss"]
    assert error(got["moved"], expected["moved"]) <= 1e-10
    assert error(got["gradients"], expected["gradients"]) <= 1e-9
    # Another rule has another gradient, and another way to join spikes another network.
    assert error(ours(name, rules.sltt())["gradients"], expected["gradients"]) > 1e-3
    others = [other for other in NETWORKS if other.split()[0] == name.split()[0] and other != name]
    for other in others:
        assert np.abs(got["evaluated"] - RECORDED["networks"][other]["evaluated"]).max() > 1e-2


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


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_return_under_the_names_and_in_the_order_they_had(name):
    """Counters of batches too; the names are spikingjelly's."""
    model, state_dict = model_of(name), theirs(name)
    params, statistics = from_torch(model, state_dict)
    back = to_torch(model, params, statistics, like=state_dict)
    assert list(back) == list(state_dict)
    for key, x in state_dict.items():
        np.testing.assert_array_equal(back[key], x, strict=True)
