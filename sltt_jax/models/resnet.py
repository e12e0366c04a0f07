"""Pre-activation spiking ResNets in their CIFAR form, as in the SLTT authors' code."""

from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax

from sltt_jax.layers import (
    LIF,
    Conv,
    Dense,
    Dropout,
    NormedConv,
    StepBatchNorm,
    at_least_float32,
    avg_pool,
    check_input,
)
from sltt_jax.models.initializers import kaiming_fan_out, torch_bias, torch_weight
from sltt_jax.neurons import Neuron


class PreActBlock(nn.Module):
    """StepBatchNorm - LIF - Conv 3x3, twice, beside a shortcut that takes the first LIF's spikes.

    Attributes:
      features: channels of both convolutions.
      stride: of the first convolution; the shortcut is a 1x1 convolution where the shape changes.
      neuron: the parameters of all neurons.
      dropout: share of the second LIF's spikes that are dropped.
      dtype: of the convolutions.
      axis_name: of a `pmap`, for batch statistics over all its devices.
    """

    features: int
    stride: int
    neuron: Neuron
    dropout: float
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, xs: jax.Array, bias: jax.Array | None, *, train: bool, temporal_gradient: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Maps `[T, B, H, W, C]` to `[T, B, ceil(H / stride), ceil(W / stride), features]`.

        The biases of input and result, `[C]` and `[features]`, go beside them to the norm that follows.
        """
        channels = xs.shape[-1]
        norm = partial(StepBatchNorm, axis_name=self.axis_name)
        conv = partial(_conv, dtype=self.dtype)
        xs = norm(name="bn1")(xs, bias, train=train)
        spikes = LIF(self.neuron, dtype=self.dtype, name="lif1")(xs, temporal_gradient=temporal_gradient)
        shortcut, shortcut_bias = spikes, None
        if self.stride != 1 or channels != self.features:
            shortcut, shortcut_bias = conv(channels, self.features, 1, self.stride, name="shortcut")(spikes)
        xs, bias = conv(channels, self.features, 3, self.stride, name="conv1")(spikes)
        xs = norm(name="bn2")(xs, bias, train=train)
        xs = LIF(self.neuron, dtype=self.dtype, name="lif2")(xs, temporal_gradient=temporal_gradient)
        xs = Dropout(self.dropout, deterministic=not train)(xs)
        xs, bias = conv(self.features, self.features, 3, 1, name="conv2")(xs)
        return xs + shortcut, bias if shortcut_bias is None else bias + shortcut_bias


class ResNet(nn.Module):
    """Pre-activation spiking ResNet for small images: Conv 3x3 - four stages - StepBatchNorm - LIF - Dense.

    `ResNet18` and `ResNet34` set `blocks`. The authors pool the last map 4x4, which takes images of 25 to 56
    pixels a side; smaller ones are averaged over all that is left of them.

    Attributes:
      blocks: blocks of each stage; the stages have 64, 128, 256, ... channels, and all but the first halve
        height and width.
      classes: units of the readout.
      neuron: the parameters of all neurons; the paper uses `Neuron(tau=1.1)`.
      dropout: share of spikes that are dropped, the same ones at every step.
      width: multiplies all channels.
      dtype: of convolutions and matrix products (jnp.bfloat16, jnp.float16); by default that of the inputs
        and parameters. All else is at least float32.
      axis_name: of a `pmap`, for batch statistics over all its devices; None: every device has its own.

    Raises:
      ValueError: the images are larger than 56 pixels a side (with four stages).
    """

    blocks: tuple[int, ...]
    classes: int = 10
    neuron: Neuron = Neuron()
    dropout: float = 0.0
    width: float = 1.0
    dtype: Any = None
    axis_name: str | None = None

    kernels_in_dtype: ClassVar[bool] = True

    @nn.compact
    def __call__(self, xs: jax.Array, *, train: bool, temporal_gradient: bool) -> jax.Array:
        """Logits `[T, B, classes]` of inputs `[T, B, H, W, C]`."""
        check_input(xs, "T B H W C")
        stem = Conv(
            round(64 * self.width), (3, 3), padding=1, use_bias=False,
            kernel_init=kaiming_fan_out, dtype=self.dtype, name="conv1",
        )  # fmt: skip
        xs, bias = stem(xs), None
        for stage, blocks in enumerate(self.blocks):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                features = round(64 * 2**stage * self.width)
                block = PreActBlock(
                    features, stride, self.neuron, self.dropout, self.dtype, self.axis_name,
                    name=f"layer{stage + 1}_{i}",
                )  # fmt: skip
                xs, bias = block(xs, bias, train=train, temporal_gradient=temporal_gradient)
        xs = StepBatchNorm(axis_name=self.axis_name, name="bn1")(xs, bias, train=train)
        xs = LIF(self.neuron, dtype=self.dtype, name="lif1")(xs, temporal_gradient=temporal_gradient)
        xs = avg_pool(xs, min(4, *xs.shape[2:4]))
        if xs.shape[2:4] != (1, 1):
            raise ValueError(f"the images are too large: pooling leaves {xs.shape[2:4]} of them, not (1, 1)")
        xs = Dropout(self.dropout, deterministic=not train)(xs[:, :, 0, 0])
        readout = Dense(self.classes, kernel_init=torch_weight, dtype=self.dtype, name="linear")
        return at_least_float32(readout(xs))


def _conv(channels, features, window, stride, *, dtype, name):
    return NormedConv(
        features,
        (window, window),
        stride,
        window // 2,
        kernel_init=kaiming_fan_out,
        bias_init=torch_bias(channels * window**2),
        dtype=dtype,
        name=name,
    )


ResNet18 = partial(ResNet, blocks=(2, 2, 2, 2))
ResNet34 = partial(ResNet, blocks=(3, 4, 6, 3))
