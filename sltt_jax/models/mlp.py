"""Fully connected spiking networks."""

import flax.linen as nn
import jax

from sltt_jax.layers import LIF, Dropout, check_input
from sltt_jax.neurons import Neuron


class MLP(nn.Module):
    """Dense - LIF - Dropout for every hidden layer, then a Dense readout without neurons.

    Attributes:
      features: units of the hidden layers.
      classes: units of the readout.
      neuron: the parameters of all neurons.
      dropout: share of spikes that are dropped, the same ones at every step.
    """

    features: tuple[int, ...] = (512, 512)
    classes: int = 10
    neuron: Neuron = Neuron()
    dropout: float = 0.0

    @nn.compact
    def __call__(self, xs: jax.Array, *, train: bool, temporal_gradient: bool) -> jax.Array:
        """Logits `[T, B, classes]` of inputs `[T, B, features]`."""
        check_input(xs, "T B features")
        for n in self.features:
            xs = nn.Dense(n)(xs)
            xs = LIF(self.neuron)(xs, temporal_gradient=temporal_gradient)
            xs = Dropout(self.dropout, deterministic=not train)(xs)
        return nn.Dense(self.classes)(xs)
