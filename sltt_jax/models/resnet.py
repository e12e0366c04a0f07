"""Pre-activation spiking ResNets in their CIFAR form, as in the SLTT authors' code."""

from functools import partial

import flax.linen as nn
import jax

from sltt_jax.layers import LIF, Conv, Dropout, StepBatchNorm, avg_pool, check_input
from sltt_jax.models.initializers import kaiming_fan_out, torch_bias, torch_weight
from sltt_jax.neurons import Neuron


class PreActBlock(nn.Module):
    """StepBatchNorm - LIF - Conv 3x3, twice, beside a shortcut that takes the first LIF's spikes.

    Attributes:
      features: channels of both convolutions.
      stride: of the first convolution; the shortcut is a 1x1 convolution where the shape changes.
      neuron: the parameters of all neurons.
      dropout: share of the second LIF's spikes that are dropped.
    """

    features: int
    stride: int
    neuron: Neuron
    dropout: float

    @nn.compact
    def __call__(self, xs: jax.Array, *, train: bool, temporal_gradient: bool) -> jax.Array:
        """`[T, B, H, W, C]` to `[T, B, ceil(H / stride), ceil(W / stride), features]`."""
        channels = xs.shape[-1]
        xs = StepBatchNorm(name="bn1")(xs, train=train)
        spikes = LIF(self.neuron, name="lif1")(xs, temporal_gradient=temporal_gradient)
        shortcut = spikes
        if self.stride != 1 or channels != self.features:
            shortcut = _conv(channels, self.features, 1, self.stride, name="shortcut")(spikes)
        xs = _conv(channels, self.features, 3, self.stride, name="conv1")(spikes)
        xs = StepBatchNorm(name="bn2")(xs, train=train)
        xs = LIF(self.neuron, name="lif2")(xs, temporal_gradient=temporal_gradient)
        xs = Dropout(self.dropout, deterministic=not train)(xs)
        xs = _conv(self.features, self.features, 3, 1, name="conv2")(xs)
        return xs + shortcut


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

    Raises:
      ValueError: the images are larger than 56 pixels a side (with four stages).
    """

    blocks: tuple[int, ...]
    classes: int = 10
    neuron: Neuron = Neuron()
    dropout: float = 0.0
    width: float = 1.0

    @nn.compact
    def __call__(self, xs: jax.Array, *, train: bool, temporal_gradient: bool) -> jax.Array:
        """Logits `[T, B, classes]` of inputs `[T, B, H, W, C]`."""
        check_input(xs, "T B H W C")
        stem = round(64 * self.width)
        xs = Conv(stem, (3, 3), padding=1, use_bias=False, kernel_init=kaiming_fan_out, name="conv1")(xs)
        for stage, blocks in enumerate(self.blocks):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                features = round(64 * 2**stage * self.width)
                block = PreActBlock(features, stride, self.neuron, self.dropout, name=f"layer{stage + 1}_{i}")
                xs = block(xs, train=train, temporal_gradient=temporal_gradient)
        xs = StepBatchNorm(name="bn1")(xs, train=train)
        xs = LIF(self.neuron, name="lif1")(xs, temporal_gradient=temporal_gradient)
        xs = avg_pool(xs, min(4, *xs.shape[2:4]))
        if xs.shape[2:4] != (1, 1):
            raise ValueError(f"the images are too large: pooling leaves {xs.shape[2:4]} of them, not (1, 1)")
        xs = Dropout(self.dropout, deterministic=not train)(xs[:, :, 0, 0])
        return nn.Dense(self.classes, kernel_init=torch_weight, name="linear")(xs)


def _conv(channels, features, window, stride, name):
    return Conv(
        features,
        (window, window),
        stride,
        padding=window // 2,
        kernel_init=kaiming_fan_out,
        bias_init=torch_bias(channels * window**2),
        name=name,
    )


ResNet18 = partial(ResNet, blocks=(2, 2, 2, 2))
ResNet34 = partial(ResNet, blocks=(3, 4, 6, 3))
