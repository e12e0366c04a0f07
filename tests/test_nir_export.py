"""Exported networks: NIR's own equations have the spikes of ours, and what NIR cannot say is an error."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import Neuron, functional, run
from sltt_jax.analysis.recording import layer_traces
from sltt_jax.cell_layers import Cells
from sltt_jax.layers import LI, LIF, Conv, Dense, Recurrent
from sltt_jax.models import MLP, RecurrentNet
from sltt_jax.models.chain import calls, chain
from tests.common.nir_graphs import simulate
from tests.common.nir_networks import (
    BY_TAU,
    HARD,
    IMAGES,
    NETWORKS,
    VECTORS,
    Sequence,
    channels_first,
    drawn,
    flatten,
)

nir = pytest.importorskip("nir", reason="the extra nir is not installed")
from sltt_jax.nir import to_nir  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_compile", "x64")


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
