"""Small networks of spikingjelly's own layers: their logits and gradients, for ours to be held against.

    python -m tests.common.peer_networks tests/recorded/networks.json

The VGGs and ResNets are its own classes with fewer channels. Weights are drawn by name, so that they need
not be kept, and of each gradient there are its norm and its products with two random arrays.
"""

import json
import sys
import types
import zlib
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

T, BATCH, CLASSES = 3, 3, 5
BLOCKS, CONVS, HIDDEN = (1, 1, 1, 1), (1, 1, 2, 1, 1), (12, 10)
SIZES = {"vgg": 64, "resnet": 48}
NETWORKS = "spiking_vgg", "spiking_resnet", "sew_resnet ADD", "sew_resnet AND", "sew_resnet IAND"


def inputs(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Currents `[T, B, 3, H, W]` and labels `[B]` of a network."""
    rng = np.random.default_rng(1)
    size = SIZES[name.split()[0].split("_")[1]]
    return rng.standard_normal((T, BATCH, 3, size, size)), np.array([0, 3, 4])


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Draws a state dict of these shapes, each array by its name alone; counters of batches are 7."""
    return {name: _draw(name, shape) for name, shape in shapes.items()}


def _draw(name, shape):
    if name.endswith("num_batches_tracked"):
        return np.array(7)
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) > 1:
        return noise * (2 / np.prod(shape[1:])) ** 0.5
    offset = {"weight": 1.5, "running_var": 1.0}.get(name.rpartition(".")[2], 0.3)
    return offset + 0.2 * noise


def summary(gradient: np.ndarray, name: str) -> list[float]:
    """Norm of a gradient and its products with two random arrays, which are drawn by its name."""
    rng = np.random.default_rng(zlib.crc32(f"{name}.grad".encode()))
    random = rng.standard_normal((2, gradient.size))
    return [float(np.linalg.norm(gradient)), *(random @ gradient.ravel()).tolist()]


def record() -> dict:
    """What networks of the installed spikingjelly compute, in training in step mode "s" and in evaluation."""
    if not find_spec("torchvision"):
        # Of it, spikingjelly imports a function that downloads weights.
        stub = types.ModuleType("torchvision._internally_replaced_utils")
        stub.load_state_dict_from_url = None
        sys.modules |= {"torchvision": types.ModuleType("torchvision"), stub.__name__: stub}
    return {
        "spikingjelly": version("spikingjelly"),
        "torch": version("torch"),
        "networks": {name: _run(name, _network(name)) for name in NETWORKS},
        "whole": _whole(),
    }


def _whole():
    """Names and shapes of the whole networks, without their memory."""
    import torch
    from spikingjelly.activation_based import neuron
    from spikingjelly.activation_based.model import sew_resnet, spiking_resnet, spiking_vgg

    lif = {"spiking_neuron": neuron.LIFNode}
    with torch.device("meta"):
        networks = {
            "spiking_resnet18": spiking_resnet.spiking_resnet18(**lif),
            "spiking_resnet34": spiking_resnet.spiking_resnet34(**lif),
            "sew_resnet18": sew_resnet.sew_resnet18(cnf="ADD", **lif),
            "spiking_vgg11_bn": spiking_vgg.spiking_vgg11_bn(**lif),
        }
    return {name: {k: tuple(x.shape) for k, x in net.state_dict().items()} for name, net in networks.items()}


def _network(name):
    import torch
    from spikingjelly.activation_based import layer, neuron, surrogate
    from spikingjelly.activation_based.model import sew_resnet, spiking_resnet, spiking_vgg

    lif = {"spiking_neuron": neuron.LIFNode, "tau": 1.5, "surrogate_function": surrogate.Sigmoid(4.0)}

    class SmallVGG(spiking_vgg.SpikingVGG):
        """With few channels; its own `forward`."""

        def __init__(self):
            super(spiking_vgg.SpikingVGG, self).__init__()
            cfg = []
            for convs, channels in zip(CONVS, (4, 8, 16, 32, 32), strict=True):
                cfg += [channels] * convs + ["M"]
            node = {"tau": lif["tau"], "surrogate_function": lif["surrogate_function"]}
            self.features = self.make_layers(cfg, batch_norm=True, neuron=neuron.LIFNode, **node)
            self.avgpool = layer.AdaptiveAvgPool2d((7, 7))
            layers, n = [], 32 * 49
            for units in HIDDEN:
                layers += [layer.Linear(n, units), neuron.LIFNode(**node), layer.Dropout(0.0)]
                n = units
            self.classifier = torch.nn.Sequential(*layers, layer.Linear(n, CLASSES))

    def small(base):
        class SmallResNet(base):
            """With 1/16 of the channels."""

            def _make_layer(self, block, planes, *args, **kwargs):
                if planes == 64:
                    self.inplanes = 4
                return super()._make_layer(block, planes // 16, *args, **kwargs)

        return SmallResNet

    if name == "spiking_vgg":
        return SmallVGG()
    if name == "spiking_resnet":
        net = small(spiking_resnet.SpikingResNet)(spiking_resnet.BasicBlock, BLOCKS, **lif)
    else:
        cnf = name.split()[1]
        net = small(sew_resnet.SEWResNet)(sew_resnet.BasicBlock, BLOCKS, cnf=cnf, **lif)
    net.conv1 = layer.Conv2d(3, 4, 7, 2, 3, bias=False)
    net.bn1 = layer.BatchNorm2d(4)
    net.fc = layer.Linear(32, CLASSES)
    return net


def _run(name, net):
    import torch
    from spikingjelly.activation_based import functional

    net = net.double()
    shapes = {key: tuple(x.shape) for key, x in net.state_dict().items()}
    drawn = {key: torch.from_numpy(x) for key, x in weights(shapes).items()}
    xs, labels = map(torch.from_numpy, inputs(name))
    net.load_state_dict(drawn)
    with torch.no_grad():
        evaluated = torch.stack([net.eval()(x) for x in xs])
    functional.reset_net(net)
    net.load_state_dict(drawn)
    logits = torch.stack([net.train()(x) for x in xs])
    cross_entropy = torch.nn.functional.cross_entropy
    loss = torch.stack([cross_entropy(step, labels) for step in logits]).mean()
    loss.backward()
    moved = {key: summary(x.numpy(), key) for key, x in net.state_dict().items() if "running" in key}
    gradients = {key: summary(p.grad.numpy(), key) for key, p in net.named_parameters()}
    return {
        "shapes": shapes,
        "evaluated": evaluated.tolist(),
        "logits": logits.tolist(),
        "loss": loss.item(),
        "moved": moved,
        "gradients": gradients,
    }


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(record()) + "\n")
