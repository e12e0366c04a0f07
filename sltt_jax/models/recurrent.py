"""Recurrent spiking networks for sequences."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax

from sltt_jax.cell_layers import ALIF, LI, LIF, Recurrent, Synaptic
from sltt_jax.layers import Dense, Dropout, at_least_float32, check_input
from sltt_jax.neurons import Neuron

CELLS = {"lif": LIF, "alif": ALIF, "synaptic": Synaptic}
READOUTS = ("li", "lif")


class RecurrentNet(nn.Module):
    """Dense - cells with lateral weights - Dropout for every hidden layer, then a Dense and a readout.

    Attributes:
      features: units of the hidden layers.
      classes: units of the readout.
      cell: "lif", "alif" or "synaptic".
      recurrent: with lateral weights; without them the layers have no path from neuron to neuron over time.
      neuron: the parameters of all neurons.
      tau_a, beta: of "alif", see `alif_step`.
      tau_syn: of "synaptic", see `synaptic_step`.
      readout: "li", leaky integrators whose membranes are the outputs, or "lif", neurons whose spikes are.
      tau_readout: time constant of the readout in steps.
      decay_readout: a "li" readout multiplies its input by 1/tau_readout, so that outputs, and what an update
        changes of them, are as large at any tau_readout.
      learn_tau: learn all time constants, from these on.
      tau_spread: of those of the hidden layers, see `Cells`.
      dropout: share of spikes that are dropped, the same ones at every step.
      dtype: of matrix products from layer to layer; by default that of the inputs and parameters. All else is
        at least float32.

    Raises:
      ValueError: (when it is called) an unknown cell or readout.
    """

    features: tuple[int, ...] = (128,)
    classes: int = 10
    cell: str = "alif"
    recurrent: bool = True
    neuron: Neuron = Neuron(tau=20.0, v_threshold=1.0)
    tau_a: float = 100.0
    beta: float = 1.8
    tau_syn: float = 5.0
    readout: str = "li"
    tau_readout: float = 20.0
    decay_readout: bool = False
    learn_tau: bool = True
    tau_spread: float = 0.0
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, xs: jax.Array, *, train: bool, temporal_gradient: bool) -> jax.Array:
        """Outputs `[T, B, classes]` of inputs `[T, B, features]`."""
        check_input(xs, "T B features")
        own = {"alif": {"tau_a": self.tau_a, "beta": self.beta}, "synaptic": {"tau_syn": self.tau_syn}}
        if self.cell not in CELLS or self.readout not in READOUTS:
            raise ValueError(
                f"cell must be one of {(*CELLS,)} and readout one of {READOUTS}, got {self.cell!r} and "
                f"{self.readout!r}"
            )
        for n in self.features:
            xs = Dense(n, dtype=self.dtype)(xs)
            cell = CELLS[self.cell](
                self.neuron, learn_tau=self.learn_tau, tau_spread=self.tau_spread, **own.get(self.cell, {})
            )
            xs = (Recurrent(cell) if self.recurrent else cell)(xs, temporal_gradient=temporal_gradient)
            xs = Dropout(self.dropout, deterministic=not train)(xs)
        xs = at_least_float32(Dense(self.classes, dtype=self.dtype)(xs))
        if self.readout == "li":
            readout = LI(self.tau_readout, decay_input=self.decay_readout, learn_tau=self.learn_tau)
            return readout(xs, temporal_gradient=temporal_gradient)
        neuron = dataclasses.replace(self.neuron, tau=self.tau_readout)
        return LIF(neuron, learn_tau=self.learn_tau)(xs, temporal_gradient=temporal_gradient)
