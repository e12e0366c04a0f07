"""Post-activation spiking ResNets, with the layers and names of torchvision's and SpikingJelly's."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax

from sltt_jax.layers import LIF, Conv, Dense, StepBatchNorm, at_least_float32, check_input
from sltt_jax.models.initializers import kaiming_fan_out, torch_bias, torch_weight
from sltt_jax.neurons import Neuron

Sew = Literal["add", "and", "iand"]

# How a block joins the spikes of its shortcut and of its branch (Fang et al. 2021, table 1).
_JOINED: dict[Sew, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "add": lambda shortcut, branch: shortcut + branch,
    "and": lambda shortcut, branch: shortcut * branch,
    "iand": lambda shortcut, branch: shortcut * (1 - branch),
}


class PostActBlock(nn.Module):
    """Conv 3x3 - StepBatchNorm - LIF - Conv 3x3 - StepBatchNorm, beside a shortcut; then what `sew` says.

    Attributes:
      features: channels of both convolutions.
      stride: of the first convolution; the shortcut is Conv 1x1 - StepBatchNorm where the shape changes.
      neuron: the parameters of all neurons.
      sew: None: the sum of branch and shortcut goes through one LIF. Otherwise both go through a LIF each, a
        shortcut that is the input itself through none, and this joins their spikes.
      dtype: of the convolutions.
      axis_name: of a `pmap`, for batch statistics over all its devices.
    """

    features: int
    stride: int
    neuron: Neuron
    sew: Sew | None = None
    dtype: Any = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, xs: jax.Array, *, train: bool, temporal_gradient: bool) -> jax.Array:
        """Maps `[T, B, H, W, C]` to `[T, B, ceil(H / stride), ceil(W / stride), features]`."""
        norm = partial(StepBatchNorm, axis_name=self.axis_name)
        fire = lambda xs, name: LIF(self.neuron, name=name)(xs, temporal_gradient=temporal_gradient)
        conv = partial(_conv, self.features, dtype=self.dtype)
        shortcut, projected = xs, self.stride != 1 or xs.shape[-1] != self.features
        if projected:
            shortcut = conv(1, self.stride, name="downsample_0")(xs)
            shortcut = norm(name="downsample_1")(shortcut, train=train)
        xs = norm(name="bn1")(conv(3, self.stride, name="conv1")(xs), train=train)
        xs = norm(name="bn2")(conv(3, 1, name="conv2")(fire(xs, "lif1")), train=train)
        if self.sew is None:
            return fire(xs + shortcut, "lif2")
        return _JOINED[self.sew](
            fire(shortcut, "downsample_lif") if projected else shortcut, fire(xs, "lif2")
        )


class SpikingResNet(nn.Module):
    """Post-activation spiking ResNet: Conv 7x7 - StepBatchNorm - LIF - max pool - four stages - mean - Dense.

    `SpikingResNet18` and `SpikingResNet34` set `blocks`. With `sew=None` it is SpikingJelly's
    `spiking_resnet18`, torchvision's `resnet18` with neurons; otherwise its `sew_resnet18(cnf=...)`, the
    SEW-ResNet of Fang et al. 2021. Their batch statistics are of each step in step mode "s", as here, and of
    all steps together in step mode "m".

    Attributes:
      blocks: blocks of each stage; the stages have 64, 128, 256, ... channels, and all but the first halve
        height and width.
      classes: units of the readout.
      neuron: the parameters of all neurons.
      sew: how the blocks join spikes, "add", "and" or "iand"; None: currents are joined, before a LIF.
      width: multiplies all channels.
      dtype: of convolutions and matrix products (jnp.bfloat16, jnp.float16); by default that of the inputs
        and parameters. All else is at least float32.
      axis_name: of a `pmap`, for batch statistics over all its devices; None: every device has its own.

    Raises:
      ValueError: an unknown `sew`.
    """

    blocks: tuple[int, ...]
    classes: int = 1000
    neuron: Neuron = Neuron()
    sew: Sew | None = None
    width: float = 1.0
    dtype: Any = None
    axis_name: str | None = None

    def __post_init__(self):
        if self.sew is not None and self.sew not in _JOINED:
            raise ValueError(f"sew must be one of {', '.join(_JOINED)} or None, got {self.sew!r}")
        super().__post_init__()

    @nn.compact
    def __call__(self, xs: jax.Array, *, train: bool, temporal_gradient: bool) -> jax.Array:
        """Logits `[T, B, classes]` of inputs `[T, B, H, W, C]`."""
        check_input(xs, "T B H W C")
        xs = _conv(round(64 * self.width), 7, 2, dtype=self.dtype, name="conv1")(xs)
        xs = StepBatchNorm(axis_name=self.axis_name, name="bn1")(xs, train=train)
        xs = LIF(self.neuron, name="lif1")(xs, temporal_gradient=temporal_gradient)
        # The window is one image of the batch wide: Linen takes no padding beside two axes of samples.
        padding: Any = ((0, 0), (1, 1), (1, 1))
        xs = nn.max_pool(xs, (1, 3, 3), (1, 2, 2), padding)
        for stage, blocks in enumerate(self.blocks):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                features = round(64 * 2**stage * self.width)
                block = PostActBlock(
                    features, stride, self.neuron, self.sew, self.dtype, self.axis_name,
                    name=f"layer{stage + 1}_{i}",
                )  # fmt: skip
                xs = block(xs, train=train, temporal_gradient=temporal_gradient)
        xs = at_least_float32(xs).mean((2, 3))
        readout = Dense(
            self.classes, kernel_init=torch_weight, bias_init=torch_bias(xs.shape[-1]), dtype=self.dtype,
            name="fc",
        )  # fmt: skip
        return at_least_float32(readout(xs))


def _conv(features, window, stride, *, dtype, name):
    return Conv(
        features,
        (window, window),
        stride,
        padding=window // 2,
        use_bias=False,
        kernel_init=kaiming_fan_out,
        dtype=dtype,
        name=name,
    )


SpikingResNet18 = partial(SpikingResNet, blocks=(2, 2, 2, 2))
SpikingResNet34 = partial(SpikingResNet, blocks=(3, 4, 6, 3))
