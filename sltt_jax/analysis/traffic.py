"""What a network costs on an event-driven device: operations, updates, messages and memory, for one sample.

Such a device holds a network whose batch norms are folded into its weights, sends spikes between cores, looks
the weights of each spike up, and goes through all its neurons at every step. Prices differ from chip to chip;
the counts do not.
"""

import math
from typing import NamedTuple

import jax
import numpy as np

from sltt_jax.analysis.activity import Activity, energy
from sltt_jax.blocks import PyTree
from sltt_jax.cell_layers import MEMBRANE


class Traffic(NamedTuple):
    """Counts for one sample over all T steps, in the mean over the batch.

    Attributes:
      synaptic_operations: a spike goes through a weight, and is added to a neuron's current.
      analogue_macs: an analogue input is multiplied with a weight, in layers before all neurons.
      neuron_updates: a neuron leaks, takes its current and is compared with its threshold, at every step.
      spikes: that neurons send, however many targets each has.
      weight_reads: words; each of the operations above reads one, also where a convolution shares it.
      state_reads: words; an update reads all of a neuron's state (of a LIF neuron one word, of an adaptive
        one three). Biases, thresholds and time constants are not in it.
      state_writes: words; an update writes what it has read.
    """

    synaptic_operations: float
    analogue_macs: float
    neuron_updates: float
    spikes: float
    weight_reads: float
    state_reads: float
    state_writes: float

    def bytes(self, weight_bits: int = 8, state_bits: int = 32) -> float:
        """Counts the bytes that are read and written if words have so many bits."""
        return (self.weight_reads * weight_bits + (self.state_reads + self.state_writes) * state_bits) / 8


def traffic(measured: Activity, state: PyTree) -> Traffic:
    """Counts what a network makes a device do.

    Args:
      measured: the activity of the network on a batch.
      state: of the network, with its membranes `[B, ...]` in the collection "membrane"; only shapes matter.

    Raises:
      ValueError: `state` has no membranes.
    """
    membranes = jax.tree_util.tree_leaves_with_path(state.get(MEMBRANE, {}))
    if not membranes:
        raise ValueError(f"the state must have membranes in the collection {MEMBRANE!r}, got {sorted(state)}")
    counted, rates = energy(measured), jax.device_get(measured.rates)
    T = len(next(iter(rates.values())))
    words = sum(math.prod(v.shape[1:]) for _, v in membranes)
    neurons = sum(math.prod(v.shape[1:]) for path, v in membranes if path[-1].key == "v")
    spikes = sum(rate.sum(dtype=np.float64) * measured.neurons[path].size for path, rate in rates.items())
    return Traffic(
        synaptic_operations=counted.synaptic_operations,
        analogue_macs=counted.analogue_macs,
        neuron_updates=float(T * neurons),
        spikes=float(spikes),
        weight_reads=counted.synaptic_operations + counted.analogue_macs,
        state_reads=float(T * words),
        state_writes=float(T * words),
    )
