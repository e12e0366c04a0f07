"""Spiking VGGs with batch normalisation, as in the SLTT authors' code, and as torchvision's are."""

from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from sltt_jax.layers import (
    LIF,
    Dense,
    Dropout,
    NormedConv,
    StepBatchNorm,
    at_least_float32,
    avg_pool,
    check_input,
    max_pool,
)
from sltt_jax.models.initializers import kaiming_fan_out
from sltt_jax.neurons import Neuron


def adaptive_avg_pool(xs: jax.Array, size: int) -> jax.Array:
    """Averages `[..., H, W, C]` to `[..., size, size, C]` as PyTorch's `AdaptiveAvgPool2d` does.

    Output i along an axis of n entries is the mean of the entries `floor(i n / size)` up to, but not
    including, `ceil((i + 1) n / size)`. The windows overlap where `size` does not divide n, and repeat
    entries where n is smaller.
    """

    def averaged(xs, axis):
        n = xs.shape[axis]
        windows = [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
        parts = [jax.lax.slice_in_dim(xs, *window, axis=axis).mean(axis, keepdims=True) for window in windows]
        return jnp.concatenate(parts, axis)

    # Slices: XLA's compiler for GPUs fails at a product by a matrix as small as one of means is.
    return averaged(averaged(xs, -3), -2)


class VGG(nn.Module):
    """Conv 3x3 - StepBatchNorm - LIF - Dropout, layer by layer, with pooling between, and a Dense readout.

    `VGG11`, `VGG13`, `VGG16` and `VGG19` set `convs`. The last map is averaged to 7x7, whatever its size.
    `hidden=(4096, 4096), max_pooling=True` makes them SpikingJelly's `spiking_vgg11_bn`, ..., torchvision's
    `vgg11_bn` with neurons, which drop out nothing before the classifier.

    Attributes:
      convs: convolutions before each of the five 2x2 poolings; they have 64, 128, 256, 512, 512 channels.
      classes: units of the readout.
      neuron: the parameters of all neurons; the paper uses `Neuron(tau=1.1)`.
      dropout: share of spikes that are dropped, the same ones at every step.
      hidden: units of fully connected layers of neurons before the readout.
      max_pooling: pool by the maximum between the convolutions, not by the mean.
      width: multiplies all channels; not the units of `hidden`.
      dtype: of convolutions and matrix products (jnp.bfloat16, jnp.float16); by default that of the inputs
        and parameters. All else is at least float32.
      axis_name: of a `pmap`, for batch statistics over all its devices; None: every device has its own.

    Raises:
      ValueError: the images are smaller than 32 pixels a side.
    """

    convs: tuple[int, int, int, int, int]
    classes: int = 10
    neuron: Neuron = Neuron()
    dropout: float = 0.0
    hidden: tuple[int, ...] = ()
    max_pooling: bool = False
    width: float = 1.0
    dtype: Any = None
    axis_name: str | None = None

    kernels_in_dtype: ClassVar[bool] = True

    @nn.compact
    def __call__(self, xs: jax.Array, *, train: bool, temporal_gradient: bool) -> jax.Array:
        """Logits `[T, B, classes]` of inputs `[T, B, H, W, C]`."""
        check_input(xs, "T B H W C")
        if min(xs.shape[2:4]) < 32:
            raise ValueError(f"five poolings need images of at least 32x32 pixels, got shape {xs.shape}")
        conv = partial(
            NormedConv, kernel_size=(3, 3), padding=1, kernel_init=kaiming_fan_out, dtype=self.dtype
        )
        for stage, (convs, channels) in enumerate(zip(self.convs, (64, 128, 256, 512, 512), strict=True), 1):
            for i in range(1, convs + 1):
                xs, bias = conv(round(channels * self.width), name=f"conv{stage}_{i}")(xs)
                xs = StepBatchNorm(axis_name=self.axis_name, name=f"bn{stage}_{i}")(xs, bias, train=train)
                xs = LIF(self.neuron, dtype=self.dtype, name=f"lif{stage}_{i}")(
                    xs, temporal_gradient=temporal_gradient
                )
                xs = Dropout(self.dropout, deterministic=not train)(xs)
            xs = max_pool(xs, 2) if self.max_pooling else avg_pool(xs, 2)
        xs = adaptive_avg_pool(at_least_float32(xs), 7)
        xs = xs.reshape(*xs.shape[:2], -1)
        dense = partial(Dense, kernel_init=nn.initializers.normal(0.01), dtype=self.dtype)
        for i, units in enumerate(self.hidden, 1):
            xs = dense(units, name=f"hidden_{i}")(xs)
            xs = LIF(self.neuron, name=f"hidden_lif_{i}")(xs, temporal_gradient=temporal_gradient)
            xs = Dropout(self.dropout, deterministic=not train)(xs)
        return at_least_float32(dense(self.classes, name="classifier")(xs))


VGG11 = partial(VGG, convs=(1, 1, 2, 2, 2))
VGG13 = partial(VGG, convs=(2, 2, 2, 2, 2))
VGG16 = partial(VGG, convs=(2, 2, 3, 3, 3))
VGG19 = partial(VGG, convs=(2, 2, 4, 4, 4))
