"""Fully connected spiking networks."""

from typing import Any, ClassVar

import flax.linen as nn
import jax

from sltt_jax.layers import LIF, Dense, Dropout, at_least_float32, check_input
from sltt_jax.neurons import Neuron


class MLP(nn.Module):
    """Dense - LIF - Dropout for every hidden layer, then a Dense readout without neurons.

    Attributes:
      features: units of the hidden layers.
      classes: units of the readout.
      neuron: the parameters of all neurons.
      dropout: share of spikes that are dropped, the same ones at every step.
      dtype: of convolutions and matrix products (jnp.bfloat16, jnp.float16); by default that of the inputs
        and parameters. All else is at least float32.
    """

    features: tuple[int, ...] = (512, 512)
    classes: int = 10
    neuron: Neuron = Neuron()
    dropout: float = 0.0
    dtype: Any = None

    kernels_in_dtype: ClassVar[bool] = True

    @nn.compact
    def __call__(self, xs: jax.Array, *, train: bool, temporal_gradient: bool) -> jax.Array:
        """Logits `[T, B, classes]` of inputs `[T, B, features]`."""
        check_input(xs, "T B features")
        for n in self.features:
            xs = Dense(n, dtype=self.dtype)(xs)
            xs = LIF(self.neuron, dtype=self.dtype)(xs, temporal_gradient=temporal_gradient)
            xs = Dropout(self.dropout, deterministic=not train)(xs)
        return at_least_float32(Dense(self.classes, dtype=self.dtype)(xs))
