"""The process that runs a NIR graph in another simulator; `hardware.py` starts it.

    python -m peers.nir_simulator snntorch GRAPH.nir INPUTS.npy OUTPUTS.npy

reads inputs `[T, B, ...]`, maps channels first, and writes the outputs `[T, B, ...]`. It prints a JSON object
with the version, or with the package that is missing.
"""

# pyright: basic, reportMissingImports=false
import json
import sys
from importlib.metadata import version

import numpy as np

SIMULATORS = "snntorch", "spikingjelly"


def load(simulator: str, graph):
    """The graph as a module of PyTorch, `module(x, state) -> (output, state)` of one step."""
    if simulator == "spikingjelly":
        from spikingjelly.activation_based.nir_exchange import import_from_nir

        return import_from_nir(graph)
    from snntorch.import_nir import import_from_nir
    from torch.nn import Flatten

    net = import_from_nir(graph)
    for layer in net.modules():
        if isinstance(layer, Flatten):  # whose axes are counted without the batch
            layer.start_dim += 1
    return net


def main() -> int:
    simulator, graph, inputs, outputs = sys.argv[1:]
    try:
        import nir
        import torch

        net = load(simulator, nir.read(graph))
    except ModuleNotFoundError as error:
        print(json.dumps({"missing": error.name}))
        return 0
    state, found = None, []
    with torch.no_grad():
        for x in torch.from_numpy(np.load(inputs)):
            y, state = net(x, state)
            found.append(y.numpy())
    np.save(outputs, np.stack(found))
    print(json.dumps({"version": version(simulator)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
