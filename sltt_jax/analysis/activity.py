"""Activity of a Linen network: firing rates, dead and saturated neurons, operations and energy.

A synaptic operation is one spike going through one weight: a spike costs as many as it has targets, its
fan-out. The same network of analogue neurons does a multiplication and addition (MAC) for every weight, once
a sample; the spiking one does an addition (AC) for every synaptic operation, at each of T steps.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sltt_jax.analysis.recording import record
from sltt_jax.blocks import PyTree
from sltt_jax.cell_layers import Cells, Recurrent
from sltt_jax.layers import NormedConv, ScaledWSConv

# Energy of a 32-bit floating point operation in 45 nm CMOS at 0.9 V, in joules (Horowitz, ISSCC 2014): a
# multiplication takes 3.7 pJ and an addition 0.9 pJ.
JOULES_PER_MAC = 4.6e-12
JOULES_PER_AC = 0.9e-12


class Weights(NamedTuple):
    """Operations of a layer of weights for one sample, in the mean over the batch.

    Attributes:
      macs: operations if every input were there: its weights times how often each is used, scalar. The zeros
        of a border are not inputs.
      operations: operations of the inputs that are not 0, of every step, `[T]`. What pooling or a shortcut
        leaves of several spikes is one input.
      analogue: its input is analogue, so that its operations are MACs and all are done, scalar bool: it comes
        before all neurons, and its input is not only zeros and ones. Whatever comes after neurons counts as
        spikes, also pooled or added up.
    """

    macs: jax.Array
    operations: jax.Array
    analogue: jax.Array


class Activity(NamedTuple):
    """Activity of a network on a batch; layers are named by their path ("layer1_0/lif1").

    Attributes:
      rates: for every layer of spiking cells the share of neurons and samples that spike at each step, `[T]`.
      neurons: for every such layer the share of steps and samples at which each neuron spikes, `[...]`
        without time and batch.
      weights: of every convolution and matrix product.
    """

    rates: dict[str, jax.Array]
    neurons: dict[str, jax.Array]
    weights: dict[str, Weights]


class Energy(NamedTuple):
    """Energy of one sample, estimated as is usual: operations times their energy, and nothing else.

    It leaves out the neurons themselves and all memory traffic, which costs more than the arithmetic on most
    hardware, and it supposes hardware that does nothing where there is no spike. On a CPU or GPU it says
    nothing.

    Attributes:
      synaptic_operations: ACs of all T steps.
      analogue_macs: MACs of all T steps in the layers with an analogue input, also where it is the same at
        every step.
      ann_macs: MACs of the same network with analogue neurons, which runs once.
      joules: of the spiking network.
      ann_joules: of the other.
    """

    synaptic_operations: float
    analogue_macs: float
    ann_macs: float
    joules: float
    ann_joules: float


def activity(
    model: nn.Module,
    params: PyTree,
    state: PyTree,
    inputs: PyTree,
    *,
    train: bool = False,
    key: jax.Array | None = None,
) -> Activity:
    """Runs a network on a batch and returns what its neurons did; a pure function, to be compiled.

    Args:
      model: the network; its neurons are `LIF`, its weights in `nn.Dense`, `nn.Conv` and `ScaledWSConv`.
      params, state, inputs: as for a rule, the membranes in `state` at rest.
      train: with the statistics of the batch, as in training. Before training the running statistics are not
        yet those of anything, so only this says how the network starts.
      key: draws the dropout masks.

    Raises:
      ValueError: there are no such layers, one that has a kernel is of another kind, or a convolution pads
        with something else than zeros.
    """
    seen = record(model, _Observer, params, state, inputs, train=train, key=key)
    neurons = {path: s["neurons"] for path, s in seen.items() if "neurons" in s}
    return Activity(
        rates={path: n.mean(range(1, n.ndim)) for path, n in neurons.items()},
        neurons={path: n.mean(0) for path, n in neurons.items()},
        weights={
            path: Weights(s["macs"][0], s["operations"], ~s["spikes"].all())
            for path, s in seen.items()
            if "macs" in s
        },
    )


class _Observer:
    """Observer of one run over a block; it knows whether there were neurons before a layer."""

    def __init__(self):
        self.after_neurons = False

    def __call__(self, module, variables, xs, ys):
        if isinstance(module, Cells):
            self.after_neurons |= module.spikes
            return {"neurons": ys.astype(jnp.float32).mean(1)} if module.spikes else None
        if isinstance(module, Recurrent):  # every output goes through all lateral weights, one step later
            n = ys.shape[-1]
            return {
                "operations": n * (ys != 0).astype(jnp.float32).sum(-1).mean(1),
                "macs": jnp.full(len(ys), n * n, jnp.float32),
                "spikes": jnp.all((ys == 0) | (ys == 1), (1, 2)),
            }
        if isinstance(module, nn.Dense | nn.Conv | NormedConv | ScaledWSConv):
            # Of half precision xs would count no further than 2048.
            there = (xs != 0).astype(jnp.float32)
            block = lambda value: jnp.broadcast_to(value, xs.shape[:1])
            binary = jnp.all((xs == 0) | (xs == 1), range(1, xs.ndim))
            return {
                "operations": operations(module, there).mean(1),
                "macs": block(operations(module, jnp.ones_like(there[:1, :1])).mean()),
                "spikes": jnp.ones(len(xs), bool) if self.after_neurons else binary,
            }
        if "kernel" in variables.get("params", {}):
            raise ValueError(f"the operations of {type(module).__name__} are not known")
        return None


def operations(
    module: nn.Dense | nn.Conv | NormedConv | ScaledWSConv,
    there: jax.Array,
    weights: jax.Array | None = None,
) -> jax.Array:
    """Counts the weights that the inputs of a layer go through.

    Args:
      module: the layer.
      there: 1 where there is an input and 0 elsewhere, `[T, B, ...]`, float32.
      weights: 1 where there is a weight and 0 elsewhere, of the shape of the kernel, float32; by default all
        are there.

    Returns:
      A number for every step and sample, `[T, B]`.

    Raises:
      ValueError: a convolution pads with something else than zeros.
    """
    if isinstance(module, nn.Dense):
        if weights is None:
            return module.features * there.sum(range(2, there.ndim))
        return (there @ weights).sum(range(2, there.ndim))
    groups = module.feature_group_count if isinstance(module, nn.Conv) else 1
    each = 1
    if weights is None:  # how often an input is used depends on where it is, and not on its channel
        there, weights = there.sum(-1, keepdims=True), jnp.ones((*_window(module), 1, 1))
        each, groups = module.features // groups, 1
    maps = there.reshape(-1, *there.shape[2:])
    used = jax.lax.conv_general_dilated(
        maps,
        weights,
        precision="highest",
        feature_group_count=groups,
        dimension_numbers=_DIMENSIONS[maps.ndim - 2],
        **_geometry(module, maps.ndim - 2),
    )
    return each * used.sum(range(1, used.ndim)).reshape(there.shape[:2])


_DIMENSIONS = {1: ("NHC", "HIO", "NHC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NHWDC", "HWDIO", "NHWDC")}


def _window(module) -> Sequence[int]:
    return (module.kernel_size,) if isinstance(module.kernel_size, int) else module.kernel_size


def _geometry(module, axes: int) -> dict[str, Any]:
    """Strides, padding and dilation of a convolution, as `lax.conv_general_dilated` takes them."""
    every = lambda value: (value,) * axes if isinstance(value, int) else tuple(value or (1,) * axes)
    padding = module.padding
    if isinstance(padding, str):
        if padding.upper() not in ("SAME", "VALID"):
            raise ValueError(f"operations are counted for padding with zeros, got {padding!r}")
    else:
        padding = [(p, p) if isinstance(p, int) else tuple(p) for p in every(padding)]
    geometry = {"window_strides": every(module.strides), "padding": padding}
    if isinstance(module, nn.Conv):
        geometry["lhs_dilation"] = every(module.input_dilation)
        geometry["rhs_dilation"] = every(module.kernel_dilation)
    return geometry


def energy(measured: Activity) -> Energy:
    """Estimates the energy of one sample from the operations that were counted."""
    operations = analogue = ann = 0.0
    for weights in jax.device_get(measured.weights).values():
        ann += float(weights.macs)
        if weights.analogue:
            analogue += float(weights.macs) * len(weights.operations)
        else:
            operations += float(weights.operations.sum(dtype=np.float64))
    joules = JOULES_PER_AC * operations + JOULES_PER_MAC * analogue
    return Energy(operations, analogue, ann, joules, JOULES_PER_MAC * ann)


def problems(measured: Activity) -> list[str]:
    """Says in plain words what is wrong with a network's activity; nothing if all is well.

    Named are layers that are silent, and those with more than half of their channels dead (no spike anywhere,
    at any step, of any sample) or saturated (nothing but spikes); in layers without a map every neuron is a
    channel. Give it a batch of some size: on few samples many neurons are silent that are not dead.
    """
    found = []
    for path, rates in jax.device_get(measured.neurons).items():
        channels = rates.reshape(-1, rates.shape[-1])
        name = "neurons" if rates.ndim == 1 else "channels"
        dead, saturated = (np.mean((channels == value).all(0)) for value in (0, 1))
        if dead == 1:
            found.append(f"{path} is silent: no neuron spikes, so the weights after it get no gradient")
        elif dead > 0.5:
            found.append(f"{path}: {100 * dead:.0f} % of the {name} are dead, they never spike")
        elif saturated > 0.5:
            found.append(f"{path}: {100 * saturated:.0f} % of the {name} are saturated, they always spike")
    return found
