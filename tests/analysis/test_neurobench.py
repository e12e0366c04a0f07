"""Metrics of NeuroBench against what its package gave on the same network in snnTorch."""

import json
from importlib.util import find_spec
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from sltt_jax import Neuron, functional
from sltt_jax.analysis.neurobench import neurobench
from sltt_jax.layers import LIF, Recurrent, avg_pool
from sltt_jax.models import ConvNet
from tests.common import neurobench_network as network

pytestmark = pytest.mark.usefixtures("quick_compile")

RECORDED = json.loads((Path(__file__).parents[1] / "recorded" / "neurobench.json").read_text())
NEURON = Neuron(network.TAU, v_reset=0.0)


class Network(nn.Module):
    @nn.compact
    def __call__(self, xs, *, train, temporal_gradient):
        how = {"temporal_gradient": temporal_gradient}
        xs = LIF(NEURON)(nn.Conv(network.MAPS, (3, 3), padding=1)(xs), **how)
        xs = avg_pool(xs, 2).reshape(*xs.shape[:2], -1)
        xs = LIF(NEURON)(nn.Dense(network.HIDDEN)(xs), **how)
        return nn.Dense(network.CLASSES)(xs)


def measured(scale=1.0):
    xs = network.inputs()
    _, state = functional.init(Network(), jax.random.key(0), xs[0])
    params = jax.tree.map(lambda a: scale * a, network.weights())
    return neurobench(Network(), params, state, xs)


def test_the_package_gives_the_same_figures():
    ours, theirs = measured(), RECORDED["metrics"]
    assert ours.synaptic_operations._asdict() == pytest.approx(theirs["SynapticOperations"], rel=1e-6)
    assert ours.activation_sparsity == pytest.approx(theirs["ActivationSparsity"], rel=1e-6)
    assert ours.membrane_updates == pytest.approx(theirs["MembraneUpdates"], rel=1e-6)
    assert ours.connection_sparsity == pytest.approx(theirs["ConnectionSparsity"], abs=5e-5)  # 4 digits
    assert ours.footprint == theirs["Footprint"] - RECORDED["buffers"]
    # The controls: neurons spike, some membranes rest, and other weights give other figures.
    assert 0.5 < ours.activation_sparsity < 0.98
    neurons = network.SIZE**2 * network.MAPS + network.HIDDEN
    assert ours.membrane_updates < 0.97 * network.T * neurons
    other = measured(1.5)
    assert other.synaptic_operations.Effective_MACs != ours.synaptic_operations.Effective_MACs
    assert other.membrane_updates != ours.membrane_updates


@pytest.mark.skipif(not (find_spec("neurobench") and find_spec("torch")), reason="needs neurobench")
def test_what_was_recorded_is_what_the_installed_package_gives():
    assert network.record()["metrics"] == pytest.approx(RECORDED["metrics"])


class Lateral(nn.Module):
    @nn.compact
    def __call__(self, xs, *, train, temporal_gradient):
        return Recurrent(LIF(Neuron(2.0)))(nn.Dense(3)(xs), temporal_gradient=temporal_gradient)


def test_lateral_weights_worked_out_by_hand():
    """Two steps of one sample and one input; neuron 0 spikes at both, neuron 1 never, neuron 2 at the second.

    Neuron 2 has u = 0.8, then 0.4 + 0.8 - 0.1 of the lateral weight from neuron 0.
    """
    xs = jnp.ones((2, 1, 1))
    params, state = functional.init(Lateral(), jax.random.key(0, impl="rbg"), xs[0])
    params["Dense_0"]["kernel"] = jnp.asarray([[2.0, 0.0, 0.8]])
    params["Recurrent_0"]["kernel"] = jnp.zeros((3, 3)).at[0, 2].set(-0.1)
    found = neurobench(Lateral(), params, state, xs)
    assert found.activation_sparsity == pytest.approx(1 - 3 / 6)
    # Weights that are there: of the input 2 a step; of neuron 0 one, sent on at both steps.
    assert found.synaptic_operations == (0, 2 * 2 + 2, 2 * 3 + 2 * 9)
    assert found.connection_sparsity == pytest.approx(9 / 12)
    assert found.membrane_updates == 3 + 2  # neuron 1 stays at 0
    assert found.footprint == 4 * (3 + 3 + 9)


def test_batch_statistics_are_stored_too():
    model, xs = ConvNet((2,), 3), jnp.ones((1, 1, 2, 2, 1))
    params, state = functional.init(model, jax.random.key(0, impl="rbg"), xs[0])
    found = neurobench(model, params, state, xs)
    assert found.footprint == 4 * (9 * 2 + 2 + 2 + 2 * 3 + 3) + 4 * (2 + 2)
