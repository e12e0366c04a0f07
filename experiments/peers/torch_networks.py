"""The networks of `workloads.py` in PyTorch, a time step a call, and their updates.

The parts come from outside, so that one network serves PyTorch by hand and the libraries on top of it: `nn`
has the classes `Conv2d`, `BatchNorm2d`, ... (`torch.nn`, or a library's own), and `neuron()` makes neurons.
"""

# pyright: basic, reportMissingImports=false
from collections.abc import Callable
from types import ModuleType

import torch
from torch.nn import functional as F

from peers.protocol import CORES, Program, peak_memory
from peers.workloads import LEARNING_RATE, MOMENTUM, Workload, inputs, weights

torch.set_num_threads(CORES)
# On a GPU as JAX does: TF32 in matrix products and convolutions, which are the fastest of those there are.
torch.set_float32_matmul_precision("high")
torch.backends.cudnn.allow_tf32 = True
torch.backends.cudnn.benchmark = True
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Block(torch.nn.Module):
    """The residual block of the paper's ResNet."""

    def __init__(self, nn: ModuleType, neuron: Callable, channels: int, features: int, stride: int):
        super().__init__()
        self.bn1, self.lif1 = nn.BatchNorm2d(channels), neuron()
        self.conv1 = nn.Conv2d(channels, features, 3, stride, 1)
        self.bn2, self.lif2 = nn.BatchNorm2d(features), neuron()
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1)
        same = stride == 1 and channels == features
        self.shortcut = torch.nn.Identity() if same else nn.Conv2d(channels, features, 1, stride)

    def forward(self, x):
        s = self.lif1(self.bn1(x))
        return self.conv2(self.lif2(self.bn2(self.conv1(s)))) + self.shortcut(s)


def network(workload: Workload, nn: ModuleType, neuron: Callable) -> torch.nn.Sequential:
    """The network of a workload with its initial weights."""
    *size, n = workload.shape
    layers = []
    for kind, *args in workload.layers:
        if kind == "dense":
            layers.append(nn.Linear(n, args[0]))
            n = args[0]
        elif kind == "conv":
            features, stride, bias = args
            layers.append(nn.Conv2d(n, features, 3, stride, 1, bias=bias))
            n, size = features, [-(-s // stride) for s in size]
        elif kind == "norm":
            layers.append(nn.BatchNorm2d(n))
        elif kind == "lif":
            layers.append(neuron())
        elif kind == "pool":
            layers.append(nn.AvgPool2d(args[0]))
            size = [s // args[0] for s in size]
        elif kind == "tile":
            layers.append(nn.AdaptiveAvgPool2d(args[0]))
            size = [args[0]] * 2
        elif kind == "flatten":
            layers.append(nn.Flatten())
            n *= size[0] * size[1]
        else:
            features, stride = args
            layers.append(Block(nn, neuron, n, features, stride))
            n, size = features, [-(-s // stride) for s in size]
    net = torch.nn.Sequential(*layers)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.ndim > 1:
                p.copy_(torch.from_numpy(weights(tuple(p.shape))))
            elif name.endswith("bias"):
                p.zero_()
    return net


def tensors(workload: Workload, *, channels_last: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs `[T, B, ...]` (`[B, ...]` if they are static), channels first, and labels.

    `channels_last` is of memory alone.
    """
    xs, y = inputs(workload)
    xs = torch.from_numpy(xs)
    if len(workload.shape) == 3:
        xs = xs.movedim(-1, -3)
        xs = xs if channels_last else xs.contiguous()
    return xs, torch.from_numpy(y).long()


def step_loss(workload: Workload) -> Callable:
    """The loss of the outputs of a step."""
    return F.cross_entropy if workload.classes else lambda outputs, y: outputs.mean()


def make_update(
    workload: Workload,
    net: torch.nn.Module,
    reset: Callable[[], None],
    xs: torch.Tensor,
    y: torch.Tensor,
    *,
    online: bool,
    precision: str = "float32",
) -> Callable[[], float]:
    """An update that goes through time step by step, with a backward pass at every step if it is online."""
    optimizer = torch.optim.SGD(net.parameters(), LEARNING_RATE, MOMENTUM)
    loss_of = step_loss(workload)
    half = precision != "float32"
    frames = [xs] * workload.T if workload.static else list(xs)

    def update() -> float:
        optimizer.zero_grad()
        reset()
        total = torch.zeros((), device=xs.device)
        for x in frames:
            with torch.autocast(xs.device.type, torch.bfloat16, enabled=half):
                loss = loss_of(net(x), y) / workload.T
            if online:
                loss.backward()
                loss = loss.detach()
            total = total + loss
        if not online:
            total.backward()
        optimizer.step()
        return total.item()  # waits for the device

    return update


def as_program(update: Callable[[], float]) -> Program:
    """An update as a program; nothing is compiled."""

    def on_gpu(run):
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before

    return Program(update, {}, peak_memory if DEVICE.type == "cpu" else on_gpu)


def about() -> dict[str, str]:
    """Device and version."""
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu"
    return {"device": device, "torch": torch.__version__}
