"""Exported networks have all our spikes in other simulators, and graphs of theirs have all of theirs here."""

import json
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import functional
from sltt_jax.analysis.recording import layer_traces
from sltt_jax.nir import model_from_nir
from tests.common.documents import ROOT
from tests.common.nir_networks import channels_first
from tests.common.nir_peers import NETWORKS, PACKAGES, digest, graph_inputs, network, spikes_of

pytest.importorskip("nir", reason="the extra nir is not installed")

pytestmark = pytest.mark.usefixtures("quick_compile", "x64")
FOLDER = Path(__file__).parent / "recorded"
RECORDED = json.loads((FOLDER / "nir.json").read_text())
EXPORTERS = [package for package in PACKAGES if "graph" in RECORDED[package]]


def spikes(model, params, state, xs):
    """Digests of the spikes of all layers."""
    traces = jax.jit(partial(layer_traces, model))(params, state, xs)
    return {name: digest(channels_first(trace["outputs"])) for name, trace in traces.items()}


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in ("convolutions", "recurrent") else n for n in NETWORKS],
)
def test_every_spike_of_an_exported_network_is_ours(name):
    ours = spikes(*network(name))
    assert all(0.02 < of["spikes"] / np.prod(of["shape"]) < 0.6 for of in ours.values())
    for package in PACKAGES:
        for fold_tau in (True, False):
            theirs = RECORDED[package]["spikes"][f"{name}, {fold_tau=}"]
            if package == "norse" and name == "convolutions":
                assert theirs == "KeyError: 'LIF_0_pool'"  # it knows no AvgPool2d
            else:
                same = sorted(map(str, theirs.values())) == sorted(map(str, ours.values()))
                assert same == (package != "norse" or fold_tau)  # norse takes r = 1 whatever it is


@pytest.mark.parametrize("package", EXPORTERS)
def test_every_spike_of_a_graph_of_another_package_is_theirs(package):
    model, params = model_from_nir(FOLDER / f"{package}.nir")
    xs = jnp.asarray(np.moveaxis(graph_inputs(), 2, -1), float)
    ours = spikes(model, params, functional.at_rest(model, {}, xs[0]), xs)
    theirs = RECORDED[package]["graph"]
    assert len(theirs) == 4 and all(of["spikes"] > 100 for of in theirs.values())
    assert sorted(map(str, ours.values())) == sorted(map(str, theirs.values()))


def test_the_page_names_the_versions():
    page = (ROOT / "docs" / "neuromorphic.md").read_text()
    named = {"spikingjelly": "spikingjelly", "snntorch": "snnTorch", "norse": "norse"}
    assert all(f"{named[p]} {RECORDED[p]['version']}" in page for p in PACKAGES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the packages
@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_recorded_is_what_the_package_does(package):
    try:
        installed = version(package)
    except PackageNotFoundError:
        pytest.skip(f"{package} is not installed: the extra peers has spikingjelly and snnTorch")
    if installed != RECORDED[package]["version"]:
        pytest.skip(f"recorded with {package} {RECORDED[package]['version']}, {installed} is installed")
    assert spikes_of(package) == RECORDED[package]["spikes"]
