"""Neurons of other libraries and ours, as the table in docs/coming_from.md has them, spike by spike."""

import json
import math
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import cells, surrogate
from sltt_jax.neurons import Neuron, lif
from tests.common.documents import ROOT, blocks
from tests.common.peer_neurons import PACKAGES, UNITS, inputs, record

pytestmark = pytest.mark.usefixtures("quick_compile")

RECORDED = json.loads((Path(__file__).parent / "recorded" / "neurons.json").read_text())
PAGE = (ROOT / "docs" / "coming_from.md").read_text()
SIGMOID, ATAN, SUPER = surrogate.sigmoid(4.0), surrogate.atan(2.0), surrogate.fast_sigmoid(1.0)


def leaky():
    """The cell of the page, as it stands there."""
    (block,) = (b for b in blocks(PAGE) if "def leaky_step" in b.text)
    exec(block.text, names := {})
    return partial(names["leaky"], beta=0.8)


def plain(**fields):
    return partial(lif, neuron=Neuron(**fields))


def current(tau_syn, **fields):
    return partial(cells.synaptic, neuron=Neuron(**fields), tau_syn=tau_syn)


OURS = {
    "spikingjelly": {
        "LIFNode()": plain(tau=2.0, v_reset=0.0, decay_input=True, surrogate=SIGMOID),
        "LIFNode(tau=3.0, v_reset=None)": plain(tau=3.0, decay_input=True, surrogate=SIGMOID),
        "LIFNode(tau=1.1, decay_input=False, v_reset=None)": plain(tau=1.1),
        "LIFNode(decay_input=False, v_threshold=0.8, v_reset=-0.25)": plain(
            v_threshold=0.8, v_reset=-0.25, surrogate=SIGMOID
        ),
        "LIFNode(detach_reset=True)": plain(
            v_reset=0.0, decay_input=True, detach_reset=True, surrogate=SIGMOID
        ),
        "IFNode()": plain(tau=math.inf, v_reset=0.0, surrogate=SIGMOID),
        "IFNode(v_reset=None)": plain(tau=math.inf, surrogate=SIGMOID),
    },
    "snntorch": {
        "Leaky(beta)": leaky(),
        "Leaky(beta, reset_delay=False)": plain(tau=5.0, v_threshold=3.0, surrogate=ATAN),
        'Leaky(beta, reset_mechanism="zero")': plain(tau=5.0, v_reset=0.0, detach_reset=True, surrogate=ATAN),
        "Synaptic(alpha, beta, reset_delay=False)": current(
            1 / 0.6, tau=5.0, v_threshold=4.0, surrogate=ATAN
        ),
    },
    "norse": {
        "LIFBoxCell(LIFBoxParameters(tau_mem_inv, v_th))": plain(
            tau=2.5, v_threshold=0.3, v_reset=0.0, decay_input=True, surrogate=SUPER
        ),
        "LIFCell(LIFParameters(tau_mem_inv, tau_syn_inv, v_th))": current(
            2.0, tau=2.5, v_threshold=0.5, v_reset=0.0, decay_input=True, surrogate=SUPER
        ),
    },
}
# snnTorch's spikes are float32 whatever it is given, and so is the gradient that comes to them.
TOLERANCE = {"spikingjelly": 1e-10, "snntorch": 1e-6, "norse": 1e-10}
ROWS = [(package, name) for package, rows in OURS.items() for name in rows]


def spikes_and_gradient(cell):
    """As `peer_neurons.record`; the first membranes are at rest."""
    xs, weights = map(jnp.asarray, inputs())
    of_lif = isinstance(cell, partial) and cell.func is lif
    rest = jnp.full(UNITS, cell.keywords["neuron"].v_rest if of_lif else 0.0, xs.dtype)
    state = (rest, rest) if isinstance(cell, partial) and cell.func is cells.synaptic else rest

    def weighted(xs):
        _, spikes = cell(state, xs, temporal_gradient=True)
        return (spikes * weights).sum(), spikes

    (_, spikes), gradient = jax.value_and_grad(weighted, has_aux=True)(xs)
    return np.asarray(spikes), np.asarray(gradient)


@pytest.mark.parametrize(("package", "name"), ROWS)
def test_a_row_of_the_table(package, name, x64):
    theirs = RECORDED[package]["rows"][name]
    expected = np.array([[int(s) for s in row] for row in theirs["spikes"]])
    spikes, gradient = spikes_and_gradient(OURS[package][name])
    assert 15 < expected.sum() < 0.7 * expected.size
    np.testing.assert_array_equal(spikes, expected)
    assert np.linalg.norm(gradient - theirs["gradient"]) <= TOLERANCE[package] * np.linalg.norm(
        theirs["gradient"]
    )


def test_another_neuron_has_other_spikes_or_another_gradient(x64):
    """So none of the rows agrees for want of spikes: no two recorded neurons of a package do."""
    for rows in (recorded["rows"] for recorded in RECORDED.values()):
        gradients = [np.array(row["gradient"]) for row in rows.values()]
        for i, one in enumerate(gradients):
            for other in gradients[:i]:
                assert np.linalg.norm(one - other) > 1e-3 * np.linalg.norm(other)


def test_the_table_has_every_recorded_package_and_its_version():
    assert {(p, n) for p, recorded in RECORDED.items() for n in recorded["rows"]} == set(ROWS)
    named = {"spikingjelly": "spikingjelly", "snntorch": "snnTorch", "norse": "norse"}
    assert all(f"{named[p]} {RECORDED[p]['version']}" in PAGE for p in PACKAGES)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # norse has functions compiled by torch.jit
@pytest.mark.parametrize("package", PACKAGES)
def test_what_is_recorded_is_what_the_package_does(package):
    reason = f"{package} is not installed: the extra peers has spikingjelly and snnTorch, norse is on its own"
    try:
        installed = version(package)
    except PackageNotFoundError:
        pytest.skip(reason)
    if installed != RECORDED[package]["version"]:
        pytest.skip(f"recorded with {package} {RECORDED[package]['version']}, {installed} is installed")
    rows = record(package)["rows"]
    assert rows.keys() == RECORDED[package]["rows"].keys()
    for name, row in rows.items():
        assert row["spikes"] == RECORDED[package]["rows"][name]["spikes"], name
        np.testing.assert_allclose(
            row["gradient"], RECORDED[package]["rows"][name]["gradient"], rtol=1e-10, atol=1e-14
        )
