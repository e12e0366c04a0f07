"""spikingjelly: BPTT in its multi-step mode, layer by layer, and SLTT with its `SLTTLIFNode`, step by step.

In multi-step mode its BatchNorm takes the statistics of all steps together. Otherwise all is the same.
"""

# pyright: basic, reportMissingImports=false
from importlib.metadata import version

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate

from peers import torch_networks
from peers.protocol import Program
from peers.torch_networks import DEVICE
from peers.workloads import LEARNING_RATE, MOMENTUM, TAU, Workload


def about() -> dict[str, str]:
    return {**torch_networks.about(), "spikingjelly": version("spikingjelly")}


def make_network(workload: Workload, rule: str) -> torch.nn.Module:
    """The network, of the library's layers."""
    node = neuron.LIFNode if rule == "bptt" else neuron.SLTTLIFNode

    def make():
        return node(
            tau=TAU, decay_input=False, v_threshold=1.0, v_reset=None,
            surrogate_function=surrogate.PiecewiseQuadratic(1.0), detach_reset=False,
        )  # fmt: skip

    net = torch_networks.network(workload, layer, make)
    functional.set_step_mode(net, "m" if rule == "bptt" else "s")
    return net


def program(workload: Workload, rule: str, precision: str) -> Program:
    """BPTT or SLTT."""
    net = make_network(workload, rule).to(DEVICE)
    xs, y = (a.to(DEVICE) for a in torch_networks.tensors(workload))
    reset = lambda: functional.reset_net(net)
    if rule == "sltt":
        update = torch_networks.make_update(workload, net, reset, xs, y, online=True, precision=precision)
    else:
        update = _multi_step(workload, net, reset, xs, y, precision)
    return torch_networks.as_program(update)


def _multi_step(workload, net, reset, xs, y, precision):
    optimizer = torch.optim.SGD(net.parameters(), LEARNING_RATE, MOMENTUM)
    loss_of = torch_networks.step_loss(workload)
    if workload.static:
        xs = xs.expand(workload.T, *xs.shape)
    labels = y.repeat(workload.T)

    def update() -> float:
        optimizer.zero_grad()
        reset()
        with torch.autocast(xs.device.type, torch.bfloat16, enabled=precision != "float32"):
            loss = loss_of(net(xs).flatten(0, 1), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return update
