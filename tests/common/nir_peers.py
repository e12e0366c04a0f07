"""Networks that were exported run in snnTorch, spikingjelly and norse, and graphs that they export.

    python -m tests.common.nir_peers tests/recorded

records the spikes of those of the packages that are installed, and keeps what the folder has of the others.
"""

import contextlib
import copy
import hashlib
import io
import json
import logging
import sys
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sltt_jax import Neuron, functional
from sltt_jax.data import load_digits
from sltt_jax.models import MLP, RecurrentNet
from sltt_jax.models.pretrained import load_pretrained
from tests.common.nir_networks import channels_first

HARD = Neuron(tau=1.1, v_reset=0.0)
PACKAGES = "snntorch", "spikingjelly", "norse"
NETWORKS = {
    "convolutions": (load_pretrained("digits").model.clone(neuron=HARD), 6),
    "dense": (MLP((64, 32), 10, Neuron(tau=2.3, v_reset=0.0)), 20),
    "recurrent": (RecurrentNet((48,), cell="lif", neuron=Neuron(tau=5.0, v_reset=0.0), readout="lif"), 20),
    "recurrent synaptic": (
        RecurrentNet((48,), cell="synaptic", neuron=Neuron(tau=5.0, v_reset=0.0), readout="lif"),
        20,
    ),
}


def network(name):
    """Network, parameters, state and inputs of 100 digits, in double precision."""
    model, T = NETWORKS[name]
    x = jnp.asarray(load_digits().test_x[:100], float)
    if name == "convolutions":
        net = load_pretrained("digits")
        params, kept = net.params, net.statistics
    else:
        x, kept = 3 * x.reshape(100, 64), {}
        shapes, _ = jax.eval_shape(partial(functional.init, model), jax.random.key(0), x)
        rng = np.random.default_rng(0)  # JAX may change what its keys draw
        draw = lambda path, a: (
            np.full(a.shape, 1.0)
            if path[-1].key.startswith("logit")
            else rng.normal(0, a.shape[0] ** -0.5, a.shape)
        )
        params = jax.tree_util.tree_map_with_path(draw, shapes)
    params, kept = jax.tree.map(lambda a: jnp.asarray(a, float), (params, kept))
    return model, params, functional.at_rest(model, kept, x), jnp.broadcast_to(x, (T, *x.shape))


def digest(spikes) -> dict:
    """How many spikes there are, and which, of neurons `[T, B, ...]`."""
    spikes = np.asarray(spikes)
    assert set(np.unique(spikes)) <= {0, 1}
    bits = np.packbits(spikes.astype(bool))
    return {
        "shape": list(spikes.shape),
        "spikes": int(spikes.sum()),
        "sha256": hashlib.sha256(bits).hexdigest(),
    }


def run(package: str, graph, xs: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Runs a graph in a package, in double precision.

    Returns:
      The spikes of the neurons of every node, "graph.node" of recurrent ones, and the outputs, `[T, B, ...]`.
    """
    import torch

    torch.set_default_dtype(torch.float64)
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            net = _in_double(_load(package, copy.deepcopy(graph)))
        names = _neurons(graph)
        seen = {name: [] for name in names.values()}
        for path, module in net.named_modules():
            if path in names:
                module.register_forward_hook(partial(_keep, seen[names[path]]))
        outputs, state = [], None
        with torch.no_grad():
            for x in xs:
                out, state = net(torch.tensor(x), state)
                outputs.append(out.numpy())
    finally:
        torch.set_default_dtype(torch.float32)
        logging.disable(logging.NOTSET)
    return {name: np.stack(values) for name, values in seen.items() if values}, np.stack(outputs)


def _load(package, graph):
    import torch

    if package == "spikingjelly":
        from spikingjelly.activation_based.nir_exchange.from_nir import import_from_nir

        return import_from_nir(graph, dtype=torch.float64)
    if package == "snntorch":
        from snntorch.import_nir import import_from_nir

        net = import_from_nir(graph)
    else:
        from norse.torch import from_nir

        net = from_nir(graph, dt=1e-4)
    for module in net.modules():
        if isinstance(module, torch.nn.Flatten):  # they would flatten the samples too
            module.start_dim += 1
    return net


def _in_double(net):
    """Casts weights, and what they are given: snnTorch's spikes are in single precision."""
    from torch import nn

    for module in net.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_pre_hook(lambda m, args: (args[0].to(m.weight.dtype),))
    return net.double()


def _keep(seen, module, args, output):
    seen.append((output[0] if isinstance(output, tuple) else output).detach().numpy())


def _neurons(graph, prefix=""):
    found = {}
    for name, node in graph.nodes.items():
        path = name.replace(".", "_")
        if type(node).__name__ == "NIRGraph":
            found |= {f"{path}.{inner}": whole for inner, whole in _neurons(node, f"{name}.").items()}
        elif hasattr(node, "v_threshold"):
            found[path] = prefix + name
    return found


def spikes_of(package: str) -> dict:
    """Digests of the spikes of all networks, with `tau` folded into the weights and without."""
    from sltt_jax.nir import to_nir

    found = {}
    for name in NETWORKS:
        model, params, state, xs = network(name)
        for fold_tau in (True, False):
            graph = to_nir(model, params, state, xs[0], fold_tau=fold_tau)
            try:
                spikes, _ = run(package, graph, channels_first(xs))
            except Exception as error:  # what a package does not read is recorded too
                found[f"{name}, {fold_tau=}"] = f"{type(error).__name__}: {error}"
                continue
            found[f"{name}, {fold_tau=}"] = {node: digest(values) for node, values in spikes.items()}
    return found


def graph_of(package: str):
    """A graph that a package exports, and the spikes of its network for `graph_inputs`."""
    import torch

    torch.manual_seed(0)
    nn, net, sample = torch.nn, None, torch.rand(1, 1, 8, 8)
    if package == "spikingjelly":
        from spikingjelly.activation_based.neuron import CUBALIFNode, IFNode, LIFNode
        from spikingjelly.activation_based.nir_exchange.to_nir import export_to_nir

        layers = [
            nn.Conv2d(1, 4, 3, padding=1),
            LIFNode(tau=3.0, v_threshold=0.3),
            nn.AvgPool2d(2),
            nn.Flatten(),
        ]
        layers += [
            nn.Linear(64, 12),
            CUBALIFNode(0.5, 0.6, v_threshold=0.5, v_reset=0.0),
            nn.Linear(12, 9),
            IFNode(),
        ]
        net = nn.Sequential(*layers, nn.Linear(9, 5), LIFNode(tau=1.7, decay_input=False, v_threshold=0.2))
        graph = export_to_nir(copy.deepcopy(net), sample)
    else:
        from snntorch import Leaky, RLeaky, Synaptic
        from snntorch.export_nir import export_to_nir

        full, options = torch.full, {"init_hidden": True, "reset_mechanism": "zero", "reset_delay": False}
        leaky = lambda *shape: Leaky(full(shape, 0.7), threshold=full(shape, 0.4), **options)
        synaptic = Synaptic(full((12,), 0.5), full((12,), 0.6), threshold=full((12,), 0.7), **options)
        layers = [
            nn.Conv2d(1, 4, 3, padding=1),
            leaky(4, 8, 8),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 12),
            synaptic,
        ]
        layers += [nn.Linear(12, 9), RLeaky(0.8, linear_features=9, threshold=0.3, **options)]
        net = nn.Sequential(*layers, nn.Linear(9, 5), leaky(5))
        with contextlib.redirect_stdout(io.StringIO()):
            graph = export_to_nir(copy.deepcopy(net), sample, ignore_dims=[0])
    neurons = [m for m in net if hasattr(m, "reset") or hasattr(m, "threshold")]
    seen = [[] for _ in neurons]
    for module, kept in zip(neurons, seen, strict=True):
        module.register_forward_hook(partial(_keep, kept))
    net = _in_double(net)
    with torch.no_grad():
        for x in graph_inputs():
            for module in net:
                x = module(torch.as_tensor(x, dtype=torch.float64))
    return graph, {str(i): digest(np.stack(kept)) for i, kept in enumerate(seen)}


def graph_inputs() -> np.ndarray:
    """Inputs of the graphs of other packages, `[T, B, C, H, W]`."""
    return np.random.default_rng(1).uniform(0, 1, (12, 100, 1, 8, 8)).astype(np.float32)


def main(folder: Path):
    import nir

    jax.config.update("jax_enable_x64", True)
    path = folder / "nir.json"
    recorded = json.loads(path.read_text()) if path.exists() else {}
    for package in PACKAGES:
        if find_spec(package):
            recorded[package] = {"version": version(package), "spikes": spikes_of(package)}
            if package != "norse":
                graph, spikes = graph_of(package)
                nir.write(folder / f"{package}.nir", graph, compression=None)  # small arrays are smaller so
                recorded[package]["graph"] = spikes
        print(package, recorded[package]["version"])
    path.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
