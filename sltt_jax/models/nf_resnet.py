"""Spiking ResNets without batch normalisation, for ImageNet, as in the SLTT authors' code.

Signal propagation is kept in hand without statistics (Brock et al. 2021): weights are standardised, each
block divides its input by the standard deviation that it is expected to have, and the residual branch adds
`ALPHA` times a learned scalar that starts at zero.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sltt_jax.layers import LIF, Dense, ScaledWSConv, at_least_float32, check_input
from sltt_jax.models.initializers import kaiming_fan_out, torch_bias
from sltt_jax.neurons import Neuron

# Of every residual branch, which so adds ALPHA^2 to the variance.
ALPHA = 0.2

# 1 / std of spikes of a standard normal current at threshold 1: p = 0.159, 1 / sqrt(p (1 - p)) = 2.74.
SPIKE_GAIN = 2.74


def betas(blocks: tuple[int, ...], resized: tuple[bool, ...]) -> list[list[float]]:
    """Expected standard deviations of the input of every block, stage by stage.

    It starts at 1. Every block adds `ALPHA^2` to the variance, counted from 1 where the shortcut is a
    convolution, whose input is normalised.

    Args:
      blocks: blocks of each stage.
      resized: for each stage whether the shortcut of its first block is a convolution.
    """
    variance = 1.0
    stages = []
    for n, first_resized in zip(blocks, resized, strict=True):
        stages.append([])
        for i in range(n):
            stages[-1].append(variance**0.5)
            variance = (1.0 if i == 0 and first_resized else variance) + ALPHA**2
    return stages


class NFBlock(nn.Module):
    """LIF - ScaledWSConv, twice (3x3, 3x3) or, as a bottleneck, three times (1x1, 3x3, 1x1).

    Attributes:
      features: channels of the inner convolutions; a bottleneck has four times as many at its end.
      stride: of the first 3x3 convolution.
      beta: expected standard deviation of the input.
      neuron: the parameters of all neurons.
      bottleneck: which of the two.
      dtype: of the convolutions.
    """

    features: int
    stride: int
    beta: float
    neuron: Neuron
    bottleneck: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, xs: jax.Array, *, temporal_gradient: bool) -> jax.Array:
        """Maps `[T, B, H, W, C]` to `[T, B, H / stride, W / stride, F]`, rounded up (bottleneck: 4 F)."""

        def spikes(xs, name):
            return SPIKE_GAIN * LIF(self.neuron, name=name)(xs, temporal_gradient=temporal_gradient)

        def conv(features, window, stride, name):
            return ScaledWSConv(
                features, (window, window), stride, window // 2,
                kernel_init=kaiming_fan_out, dtype=self.dtype, name=name,
            )  # fmt: skip

        n = self.features
        if self.bottleneck:
            layers = [(n, 1, 1), (n, 3, self.stride), (4 * n, 1, 1)]
        else:
            layers = [(n, 3, self.stride), (n, 3, 1)]
        features = layers[-1][0]
        out = spikes(xs / self.beta, "lif1")
        shortcut = xs
        if self.stride != 1 or xs.shape[-1] != features:
            shortcut = conv(features, 1, self.stride, "downsample")(out)
        for i, layer in enumerate(layers, 1):
            out = conv(*layer, f"conv{i}")(out if i == 1 else spikes(out, f"lif{i}"))
        skipinit_gain = self.param("skipinit_gain", nn.initializers.zeros, ())
        return out * (skipinit_gain * ALPHA) + shortcut


class NFResNet(nn.Module):
    """Normaliser-free spiking ResNet: ScaledWSConv 7x7 - average pool - four stages - average - Dense.

    `NFResNet34`, `NFResNet50` and `NFResNet101` set `blocks` and `bottleneck`. There is no neuron before the
    first block and none after the last.

    Attributes:
      blocks: blocks of each stage; the stages have 64, 128, 256, ... channels (four times as many at the end
        of a bottleneck), and all but the first halve height and width.
      bottleneck: blocks of three convolutions instead of two.
      classes: units of the readout.
      neuron: the parameters of all neurons; the paper uses `Neuron(tau=1.1)`.
      width: multiplies all channels.
      dtype: of convolutions and matrix products (jnp.bfloat16, jnp.float16); by default that of the inputs
        and parameters. All else is at least float32.
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    classes: int = 1000
    neuron: Neuron = Neuron()
    width: float = 1.0
    dtype: Any = None

    @nn.compact
    def __call__(self, xs: jax.Array, *, train: bool, temporal_gradient: bool) -> jax.Array:
        """Logits `[T, B, classes]` of inputs `[T, B, H, W, C]`; nothing depends on `train`."""
        del train
        check_input(xs, "T B H W C")
        stem = round(64 * self.width)
        conv1 = ScaledWSConv(stem, (7, 7), 2, 3, kernel_init=kaiming_fan_out, dtype=self.dtype, name="conv1")
        xs = conv1(xs)
        # The zeros of the border count, as in PyTorch.
        xs = nn.avg_pool(jnp.pad(xs, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0))), (3, 3), (2, 2))
        # The first stage keeps height and width, and a basic block the channels as well.
        resized = tuple(self.bottleneck or stage > 0 for stage in range(len(self.blocks)))
        for stage, stage_betas in enumerate(betas(self.blocks, resized)):
            for i, beta in enumerate(stage_betas):
                stride = 2 if stage > 0 and i == 0 else 1
                features = round(64 * 2**stage * self.width)
                name = f"layer{stage + 1}_{i}"
                block = NFBlock(features, stride, beta, self.neuron, self.bottleneck, self.dtype, name=name)
                xs = block(xs, temporal_gradient=temporal_gradient)
        xs = xs.mean((2, 3))
        bias_init = torch_bias(xs.shape[-1])
        readout = Dense(
            self.classes, kernel_init=nn.initializers.zeros, bias_init=bias_init, dtype=self.dtype, name="fc"
        )
        return at_least_float32(readout(xs))


NFResNet34 = partial(NFResNet, blocks=(3, 4, 6, 3), bottleneck=False)
NFResNet50 = partial(NFResNet, blocks=(3, 4, 6, 3), bottleneck=True)
NFResNet101 = partial(NFResNet, blocks=(3, 4, 23, 3), bottleneck=True)
