"""Small convolutional spiking networks."""

from typing import Any, ClassVar

import flax.linen as nn
import jax

from sltt_jax.layers import LIF, Conv, Dense, Dropout, StepBatchNorm, at_least_float32, avg_pool, check_input
from sltt_jax.neurons import Neuron


class ConvNet(nn.Module):
    """Conv 3x3 - StepBatchNorm - LIF - Dropout - average pool 2x2 for every layer, then a Dense readout.

    Attributes:
      features: channels of the layers; every layer halves height and width.
      classes: units of the readout.
      neuron: the parameters of all neurons.
      dropout: share of spikes that are dropped, the same ones at every step.
      norm: batch normalisation after every convolution; without it the convolutions have biases.
      dtype: of convolutions and matrix products (jnp.bfloat16, jnp.float16); by default that of the inputs
        and parameters. All else is at least float32.
      axis_name: of a `pmap`, for batch statistics over all its devices; None: every device has its own.
    """

    features: tuple[int, ...] = (32, 64)
    classes: int = 10
    neuron: Neuron = Neuron()
    dropout: float = 0.0
    norm: bool = True
    dtype: Any = None
    axis_name: str | None = None

    kernels_in_dtype: ClassVar[bool] = True

    @nn.compact
    def __call__(self, xs: jax.Array, *, train: bool, temporal_gradient: bool) -> jax.Array:
        """Logits `[T, B, classes]` of inputs `[T, B, H, W, C]`."""
        check_input(xs, "T B H W C")
        least = 2 ** len(self.features)
        if min(xs.shape[2:4]) < least:
            raise ValueError(
                f"features={self.features}: each layer halves the image, which must be at least "
                f"{least}x{least} pixels, got shape {xs.shape}"
            )
        for n in self.features:
            xs = Conv(n, (3, 3), padding=1, use_bias=not self.norm, dtype=self.dtype)(xs)
            if self.norm:
                xs = StepBatchNorm(axis_name=self.axis_name)(xs, train=train)
            xs = LIF(self.neuron, dtype=self.dtype)(xs, temporal_gradient=temporal_gradient)
            xs = Dropout(self.dropout, deterministic=not train)(xs)
            xs = avg_pool(xs, 2)
        readout = Dense(self.classes, dtype=self.dtype)
        return at_least_float32(readout(xs.reshape(*xs.shape[:2], -1)))
