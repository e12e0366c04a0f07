"""Spikes of the neurons of spikingjelly, snnTorch and norse, for those of this library to be held against.

    python -m tests.common.peer_neurons tests/recorded/neurons.json

records those of the packages that are installed, and keeps what the file has of the others.
"""

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

STEPS, UNITS = 24, 10
PACKAGES = "spikingjelly", "snntorch", "norse"


def inputs() -> tuple[np.ndarray, np.ndarray]:
    """Currents `[STEPS, UNITS]`, and what the spikes are weighted with to have a gradient; float64."""
    rng = np.random.default_rng(0)
    return 0.7 + rng.standard_normal((STEPS, UNITS)), rng.standard_normal((STEPS, UNITS))


def _spikingjelly() -> dict[str, Callable]:
    from spikingjelly.activation_based.neuron import IFNode, LIFNode
    from spikingjelly.activation_based.surrogate import PiecewiseQuadratic

    like_paper = {"decay_input": False, "v_reset": None, "surrogate_function": PiecewiseQuadratic(1.0)}
    return {
        "LIFNode()": LIFNode(),
        "LIFNode(tau=3.0, v_reset=None)": LIFNode(tau=3.0, v_reset=None),
        "LIFNode(tau=1.1, decay_input=False, v_reset=None)": LIFNode(tau=1.1, **like_paper),
        "LIFNode(decay_input=False, v_threshold=0.8, v_reset=-0.25)": LIFNode(
            decay_input=False, v_threshold=0.8, v_reset=-0.25
        ),
        "LIFNode(detach_reset=True)": LIFNode(detach_reset=True),
        "IFNode()": IFNode(),
        "IFNode(v_reset=None)": IFNode(v_reset=None),
    }


def _snntorch() -> dict[str, Callable]:
    from snntorch import Leaky, Synaptic
    from torch import tensor

    def stepped(layer, n_states):
        state = []

        def step(x):
            spikes, *new = layer(x, *(state or [0 * x] * n_states))
            state[:] = new
            return spikes

        return step

    alpha, beta = tensor(0.4), tensor(0.8)
    at_once = {"reset_delay": False}
    return {
        "Leaky(beta)": stepped(Leaky(beta), 1),
        "Leaky(beta, reset_delay=False)": stepped(Leaky(beta, threshold=tensor(3.0), **at_once), 1),
        'Leaky(beta, reset_mechanism="zero")': stepped(Leaky(beta, reset_mechanism="zero"), 1),
        "Synaptic(alpha, beta, reset_delay=False)": stepped(
            Synaptic(alpha, beta, threshold=tensor(4.0), **at_once), 2
        ),
    }


def _norse() -> dict[str, Callable]:
    from norse.torch import LIFBoxCell, LIFBoxParameters, LIFCell, LIFParameters

    def stepped(cell):
        state = []

        def step(x):
            spikes, new = cell(x, *state)
            state[:] = [new]
            return spikes

        return step

    box = LIFBoxParameters(tau_mem_inv=400.0, v_th=0.3)
    lif = LIFParameters(tau_mem_inv=400.0, tau_syn_inv=500.0, v_th=0.5)
    return {
        "LIFBoxCell(LIFBoxParameters(tau_mem_inv, v_th))": stepped(LIFBoxCell(p=box)),
        "LIFCell(LIFParameters(tau_mem_inv, tau_syn_inv, v_th))": stepped(LIFCell(p=lif)),
    }


NEURONS = {"spikingjelly": _spikingjelly, "snntorch": _snntorch, "norse": _norse}


def record(package: str) -> dict:
    """Spikes, and gradients with respect to the currents, of every neuron of an installed package."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        rows = {name: _run(torch, step) for name, step in NEURONS[package]().items()}
    finally:
        torch.set_default_dtype(before)
    return {"version": version(package), "torch": version("torch"), "rows": rows}


def _run(torch, step):
    xs, weights = (torch.tensor(a) for a in inputs())
    xs.requires_grad_()
    spikes = torch.stack([step(x) for x in xs])
    (spikes * weights).sum().backward()
    marks = ["".join("01"[int(s)] for s in row) for row in spikes.tolist()]
    return {"spikes": marks, "gradient": xs.grad.tolist()}


def main(path: Path):
    recorded = json.loads(path.read_text()) if path.exists() else {}
    for package in PACKAGES:
        if find_spec(package):
            recorded[package] = record(package)
        print(package, recorded[package]["version"])
    path.write_text(json.dumps(recorded) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
