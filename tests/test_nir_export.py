"""Exported networks: NIR's own equations have the spikes of ours, and what NIR cannot say is an error."""

import dataclasses
import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import Neuron, functional, run
from sltt_jax.analysis.recording import layer_traces
from sltt_jax.cell_layers import Cells
from sltt_jax.layers import LI, LIF, Conv, Dense, Recurrent, StepBatchNorm, Synaptic, avg_pool
from sltt_jax.models import MLP, RecurrentNet
from sltt_jax.models.chain import calls, chain
from tests.common.nir_graphs import simulate

nir = pytest.importorskip("nir", reason="the extra nir is not installed")
from sltt_jax.nir import to_nir  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_compile", "x64")
HARD = Neuron(tau=1.7, v_reset=0.0)


class Sequence(nn.Module):
    """Layers one after the other; those that know time are cells, and functions are called as they are."""

    layers: tuple

    @nn.compact
    def __call__(self, xs, *, train, temporal_gradient):
        for layer in self.layers:
            if isinstance(layer, StepBatchNorm):
                xs = layer(xs, train=train)
            elif isinstance(layer, nn.Dense | nn.Conv) or not isinstance(layer, nn.Module):
                xs = layer(xs)
            else:
                xs = layer(xs, temporal_gradient=temporal_gradient)
        return xs


flatten = lambda xs: xs.reshape(*xs.shape[:2], -1)
pool = partial(avg_pool, size=2)
sum_pool = lambda xs: 4 * pool(xs)
OF_CHANNELS = Neuron(
    tau=jnp.array([[[[1.2, 3.0, 9.0]]]]), v_threshold=jnp.array([[[[0.5, 0.6, 0.7]]]]), v_reset=-0.2
)
NO_LEAK, RESTING = Neuron(tau=math.inf, v_reset=0.0), Neuron(tau=3.0, v_reset=0.25, v_threshold=0.9)
BY_TAU = dataclasses.replace(RESTING, decay_input=True)
IMAGES, VECTORS = (2, 12, 8, 2), (2, 7)

NETWORKS = {
    "vectors": (
        Sequence((
            Dense(9), LIF(NO_LEAK), Dense(9, use_bias=False), LIF(BY_TAU),
            Dense(9), Synaptic(BY_TAU, tau_syn=3.0),
            Dense(9), Recurrent(LIF(RESTING)), Dense(9), Recurrent(Synaptic(HARD)),
            Dense(5), LI(4.0, decay_input=True), Dense(3), LI(2.5),
        )),
        VECTORS,
    ),
    "maps": (
        Sequence((
            Conv(4, (3, 3), (2, 1), "VALID"), LIF(RESTING),
            Conv(3, (3, 3), kernel_dilation=2), StepBatchNorm(), sum_pool, LIF(OF_CHANNELS),
            pool, flatten, Dense(4),
        )),
        IMAGES,
    ),
    "learned": (RecurrentNet((9,), 4, cell="synaptic", neuron=HARD, readout="lif"), VECTORS),
}  # fmt: skip


def drawn(model, shape, T=12):
    """Parameters and statistics in double precision, and inputs, under which all layers fire."""
    x = jnp.zeros(shape)
    params, state = jax.eval_shape(partial(functional.init, model), jax.random.key(0), x)
    rng = np.random.default_rng(3)
    low = {"var": 0.5, "logit_decay": 0.0, "logit_decay_syn": 0.0, "bias": 0.0}
    draw = lambda path, a: jnp.asarray(rng.uniform(low.get(path[-1].key, -0.9), 1, a.shape))
    params, state = jax.tree_util.tree_map_with_path(
        draw, (params, {"batch_stats": state.get("batch_stats", {})})
    )
    xs = jnp.asarray(rng.uniform(0, 1, (T, *shape)))
    return params, functional.at_rest(model, {k: v for k, v in state.items() if v}, xs[0]), xs


def channels_first(a):
    return np.moveaxis(np.asarray(a), -1, 2)


def cells(model, x):
    """The layers of cells, and their nodes."""
    for _, layer in chain(calls(model, x))[:-1]:
        if isinstance(layer.module, Recurrent):
            yield "/".join(layer.module.cell.path), f"{layer.name}.cell"
        elif isinstance(layer.module, Cells):
            yield layer.name, layer.name


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_are_those_of_the_equations_of_nir(name):
    model, shape = NETWORKS[name]
    params, state, xs = drawn(model, shape)
    ours = jax.jit(partial(layer_traces, model))(params, state, xs)
    out, _ = jax.jit(partial(run, functional.applier(model, train=False)))(params, state, xs)
    pairs = list(cells(model, xs[0]))
    assert len(pairs) == len(ours)
    for fold_tau in (True, False):
        theirs = simulate(to_nir(model, params, state, xs[0], fold_tau=fold_tau), channels_first(xs))
        for layer, node in pairs:
            spikes = ours[layer]["outputs"]
            np.testing.assert_allclose(theirs[node], channels_first(spikes), rtol=1e-10, atol=1e-12)
            assert 0.02 < spikes.mean() < 0.9 or not set(np.unique(spikes)) <= {0, 1}
        np.testing.assert_allclose(theirs["output"], channels_first(out), rtol=1e-10, atol=1e-10)


def test_another_time_step_has_other_spikes():
    model = MLP((12, 9), 4, HARD)
    params, state, xs = drawn(model, VECTORS)
    graph = to_nir(model, params, state, xs[0])
    same = to_nir(model, params, state, xs[0], dt=1e-3)
    spikes = simulate(graph, xs)["LIF_1"]
    assert (spikes == simulate(same, xs, dt=1e-3)["LIF_1"]).all()
    assert (spikes != simulate(graph, xs, dt=5e-5)["LIF_1"]).mean() > 0.05
    np.testing.assert_allclose(same.nodes["LIF_0"].tau, 1.7e-3)


def test_a_folded_tau_has_r_1_and_an_unfolded_one_the_weights_as_they_are():
    model = MLP((12, 9), 4, HARD)
    params, state, xs = drawn(model, VECTORS)
    folded, plain = (
        to_nir(model, params, state, xs[0], fold_tau=fold_tau).nodes for fold_tau in (True, False)
    )
    assert (folded["LIF_0"].r == 1).all() and (plain["LIF_0"].r == 1.7).all()
    assert (plain["Dense_0"].weight == params["Dense_0"]["kernel"].T).all()
    assert (folded["Dense_0"].bias == 1.7 * params["Dense_0"]["bias"]).all()
    assert (folded["Dense_2"].weight == params["Dense_2"]["kernel"].T).all()  # no neurons follow it


def test_a_file_holds_the_graph(tmp_path):
    model, shape = NETWORKS["learned"]
    params, state, xs = drawn(model, shape)
    graph = to_nir(model, params, state, xs[0])
    nir.write(tmp_path / "net.nir", graph)
    again = simulate(nir.read(tmp_path / "net.nir"), xs)
    assert (simulate(graph, xs)["output"] == again["output"]).all()


SOFT = Neuron(tau=1.7)
ALONG = Neuron(tau=jnp.linspace(1.5, 3, 384).reshape(1, 12, 8, 4), v_reset=0.0)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (MLP((5,), 3, SOFT), VECTORS, "LIF_0 has a soft reset .*--v-reset 0"),
        (RecurrentNet((5,), 3, cell="alif", neuron=HARD), VECTORS, "Recurrent_0 has cells ALIF"),
        (Sequence((LIF(HARD), Dense(3))), VECTORS, "layers_0 has no layer of weights before it"),
        (Sequence((Conv(4, (3, 3)), LIF(ALONG))), IMAGES, "tau of layers_1 differs within a channel"),
        (
            Sequence((Conv(4, (3, 3)), LIF(HARD), flatten, LIF(BY_TAU))),
            IMAGES,
            "layers_3 is given a flattened map",
        ),
        (Sequence((Conv(4, (3, 3)), flatten)), IMAGES, "the output is given a flattened map"),
        (Sequence((Conv(4, (3, 2)), LIF(HARD))), IMAGES, r"layers_0 has a window of \(3, 2\)"),
        (Sequence((Conv(4, (3, 3), feature_group_count=2),)), IMAGES, "layers_0 has groups of channels"),
        (Sequence((Conv(4, (2, 2)), LIF(HARD))), IMAGES, r"layers_0 pads by \[\(0, 1\), \(0, 1\)\]"),
        (Sequence((Conv(4, (3, 3), padding="CIRCULAR"), LIF(HARD))), IMAGES, "layers_0 must pad with zeros"),
        (Sequence((Dense(4),)), IMAGES, "layers_0 is a dense layer on a map"),
        (Sequence((Dense(4), LI(math.inf))), VECTORS, "layers_1 has tau=inf"),
    ],
)
def test_what_nir_cannot_say_is_an_error_that_names_the_layer(model, shape, message):
    params, state, xs = drawn(model, shape)
    with pytest.raises(ValueError, match=message):
        to_nir(model, params, state, xs[0])


@pytest.mark.parametrize("dt", [0, -1e-4, math.inf, math.nan])
def test_a_time_step_that_is_none_is_an_error(dt):
    with pytest.raises(ValueError, match="dt must be a positive number of seconds"):
        to_nir(MLP((5,), 3, HARD), {}, {}, jnp.zeros(VECTORS), dt=dt)
