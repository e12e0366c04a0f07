"""snnTorch: its `Leaky` neurons step by step; SLTT by a detached membrane, for it has no name for it.

Its reset comes one step after the spike and has no gradient; a membrane at exactly the threshold is silent.
"""

# pyright: basic, reportMissingImports=false
from importlib.metadata import version

import snntorch
import torch
from snntorch import surrogate

from peers import torch_networks
from peers.protocol import Program
from peers.torch_networks import DEVICE
from peers.workloads import TAU, Workload


def about() -> dict[str, str]:
    return {**torch_networks.about(), "snntorch": version("snntorch")}


class Leaky(torch.nn.Module):
    """The library's neurons with their membrane at hand."""

    def __init__(self, temporal_gradient: bool):
        super().__init__()
        triangle = lambda x, g, spikes: g * (1 - x.abs()).clamp(min=0)
        self.leaky = snntorch.Leaky(beta=1 - 1 / TAU, spike_grad=surrogate.custom_surrogate(triangle))
        self.temporal_gradient = temporal_gradient
        self.v = None

    def forward(self, x):
        v = torch.zeros_like(x) if self.v is None else self.v
        s, self.v = self.leaky(x, v if self.temporal_gradient else v.detach())
        return s


def program(workload: Workload, rule: str, precision: str) -> Program:
    """BPTT or SLTT."""
    net = torch_networks.network(workload, torch.nn, lambda: Leaky(rule == "bptt")).to(DEVICE)
    neurons = [m for m in net.modules() if isinstance(m, Leaky)]
    xs, y = (a.to(DEVICE) for a in torch_networks.tensors(workload))

    def reset():
        for neuron in neurons:
            neuron.v = None

    update = torch_networks.make_update(
        workload, net, reset, xs, y, online=rule == "sltt", precision=precision
    )
    return torch_networks.as_program(update)
