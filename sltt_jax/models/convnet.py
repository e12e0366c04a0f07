"""Small convolutional spiking networks."""

import flax.linen as nn
import jax

from sltt_jax.layers import LIF, Conv, Dropout, StepBatchNorm, avg_pool, check_input
from sltt_jax.neurons import Neuron


class ConvNet(nn.Module):
    """Conv 3x3 - StepBatchNorm - LIF - Dropout - average pool 2x2 for every layer, then a Dense readout.

    Attributes:
      features: channels of the layers; every layer halves height and width.
      classes: units of the readout.
      neuron: the parameters of all neurons.
      dropout: share of spikes that are dropped, the same ones at every step.
      norm: batch normalisation after every convolution; without it the convolutions have biases.
    """

    features: tuple[int, ...] = (32, 64)
    classes: int = 10
    neuron: Neuron = Neuron()
    dropout: float = 0.0
    norm: bool = True

    @nn.compact
    def __call__(self, xs: jax.Array, *, train: bool, temporal_gradient: bool) -> jax.Array:
        """Logits `[T, B, classes]` of inputs `[T, B, H, W, C]`."""
        check_input(xs, "T B H W C")
        for n in self.features:
            xs = Conv(n, (3, 3), padding=1, use_bias=not self.norm)(xs)
            if self.norm:
                xs = StepBatchNorm()(xs, train=train)
            xs = LIF(self.neuron)(xs, temporal_gradient=temporal_gradient)
            xs = Dropout(self.dropout, deterministic=not train)(xs)
            xs = avg_pool(xs, 2)
        return nn.Dense(self.classes)(xs.reshape(*xs.shape[:2], -1))
