"""PyTorch by hand, as the paper's authors train: the membrane is a tensor, and SLTT is its `detach`.

Maps lie in memory with channels last, which is faster than PyTorch's default or as fast.
"""

# pyright: basic, reportMissingImports=false
from collections.abc import Callable
from typing import Any

import torch

from peers import torch_networks
from peers.protocol import Program
from peers.torch_networks import DEVICE, about
from peers.workloads import TAU, Workload

__all__ = ["LIF", "about", "network", "program"]


class Spike(torch.autograd.Function):
    """Heaviside step with the triangle for a derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - x.abs()).clamp(min=0)


class LIF(torch.nn.Module):
    """Neurons; without `temporal_gradient` nothing is differentiated from step to step."""

    def __init__(self, temporal_gradient: bool):
        super().__init__()
        self.temporal_gradient = temporal_gradient
        self.v: torch.Tensor | None = None

    def forward(self, x):
        u = x.float() if x.dtype == torch.bfloat16 else x
        if self.v is not None:
            u = torch.add(u, self.v, alpha=1 - 1 / TAU)
        s = Spike.apply(u - 1)
        with torch.set_grad_enabled(self.temporal_gradient):
            self.v = u - s
        return s


def network(workload: Workload, rule: str) -> tuple[torch.nn.Module, Callable[[], None]]:
    """The network and what puts its membranes at rest."""
    net = torch_networks.network(workload, torch.nn, lambda: LIF(rule == "bptt"))
    if len(workload.shape) == 3:
        net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    neurons = [m for m in net.modules() if isinstance(m, LIF)]

    def reset():
        for neuron in neurons:
            neuron.v = None

    return net, reset


def program(workload: Workload, rule: str, precision: str, *, compiled: bool = False) -> Program:
    """BPTT or SLTT; `compiled` is of the network of one time step, the loop over time is PyTorch's own."""
    net, reset = network(workload, rule)
    net = net.to(DEVICE)
    xs, y = (a.to(DEVICE) for a in torch_networks.tensors(workload, channels_last=True))
    forward: Any = torch.compile(net) if compiled else net
    update = torch_networks.make_update(
        workload, forward, reset, xs, y, online=rule == "sltt", precision=precision
    )
    return torch_networks.as_program(update)
