"""A small network as NeuroBench's package measures it in snnTorch, for our figures to be held against.

python -m tests.common.neurobench_network tests/recorded/neurobench.json
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np

T, BATCH, SIZE, CHANNELS, MAPS, HIDDEN, CLASSES = 5, 3, 6, 2, 3, 7, 4
TAU = 2.0


def weights() -> dict[str, dict[str, np.ndarray]]:
    """Kernels and biases in Linen's layout, some of them 0: conv 3x3 - LIF - pool 2x2 - LIF - readout."""
    rng = np.random.default_rng(0)
    shapes = {
        "Conv_0": (3, 3, CHANNELS, MAPS),
        "Dense_0": ((SIZE // 2) ** 2 * MAPS, HIDDEN),
        "Dense_1": (HIDDEN, CLASSES),
    }
    draw = lambda shape: rng.normal(0.1, 2 / np.prod(shape[:-1]) ** 0.5, shape) * (rng.random(shape) < 0.8)
    return {
        name: {"kernel": draw(shape).astype(np.float32), "bias": bias * rng.random(shape[-1]).astype("f4")}
        for (name, shape), bias in zip(shapes.items(), (0, 0.3, 0.3), strict=True)
    }


def inputs() -> np.ndarray:
    """Images `[T, B, H, W, C]`, of zeros and ones at the even steps and analogue at the others; float32."""
    rng = np.random.default_rng(1)
    spikes = rng.random((T, BATCH, SIZE, SIZE, CHANNELS)) < 0.2
    analogue = spikes * rng.normal(1, 1, spikes.shape)
    return np.where((np.arange(T) % 2 == 0).reshape(T, 1, 1, 1, 1), spikes, analogue).astype(np.float32)


def record() -> dict:
    """The figures of the installed package."""
    import torch
    from neurobench.benchmarks import Benchmark
    from neurobench.metrics.static import ConnectionSparsity, Footprint
    from neurobench.metrics.workload import ActivationSparsity, MembraneUpdates, SynapticOperations
    from neurobench.models import SNNTorchModel
    from snntorch import Leaky

    class Network(torch.nn.Sequential):
        def forward(self, data):  # [B, T, C, H, W]
            for layer in self:
                if isinstance(layer, Leaky):
                    layer.reset_mem()
            step = super().forward
            return torch.stack([step(x) for x in data.unbind(1)])

    leaky = lambda: Leaky(
        1 - 1 / TAU, reset_mechanism="zero", reset_delay=False, init_hidden=True
    )  # the reset is at once, as ours
    layers = {
        "Conv_0": torch.nn.Conv2d(CHANNELS, MAPS, 3, padding=1),
        "Dense_0": torch.nn.Linear((SIZE // 2) ** 2 * MAPS, HIDDEN),
        "Dense_1": torch.nn.Linear(HIDDEN, CLASSES),
    }
    for name, layer in layers.items():
        kernel, bias = (torch.tensor(a) for a in weights()[name].values())
        layer.weight.data = kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        layer.bias.data = bias
    channels_last = torch.nn.Module()
    channels_last.forward = lambda x: x.permute(0, 2, 3, 1)  # as ours are flattened
    net = Network(
        layers["Conv_0"], leaky(), torch.nn.AvgPool2d(2), channels_last, torch.nn.Flatten(),
        layers["Dense_0"], leaky(), layers["Dense_1"],
    )  # fmt: skip
    xs = torch.tensor(inputs()).permute(1, 0, 4, 2, 3)
    metrics = [Footprint, ConnectionSparsity], [ActivationSparsity, SynapticOperations, MembraneUpdates]
    buffers = sum(b.numel() * b.element_size() for b in net.buffers())
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(xs, torch.zeros(BATCH)), BATCH)
    found = Benchmark(SNNTorchModel(net, custom_forward=True), data, [], [], [*metrics]).run(quiet=True)
    names = "neurobench", "snntorch", "torch"
    return {"versions": {name: version(name) for name in names}, "buffers": buffers, "metrics": {**found}}


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(record(), default=float) + "\n")
