"""Linen layers on blocks of time steps, `[T, B, ...]` with channels last.

Pooling and everything else that takes extra leading axes is Linen's own. Here is only what time makes
special: neurons that carry a membrane (from `sltt_jax.cell_layers`), statistics of every step by itself, one
dropout mask for all steps; and Linen's `Dense` and `Conv` with gradients that are fast on the CPU.

Every layer that needs to know is told how it is run: `train`, and `temporal_gradient` as the rule wants it.
"""

import math
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from sltt_jax.batch_norm import normalise
from sltt_jax.blocks import at_least_float32
from sltt_jax.cell_layers import ALIF as ALIF
from sltt_jax.cell_layers import FIRING_RATE as FIRING_RATE
from sltt_jax.cell_layers import LI as LI
from sltt_jax.cell_layers import LIF as LIF
from sltt_jax.cell_layers import MEMBRANE as MEMBRANE
from sltt_jax.cell_layers import Recurrent as Recurrent
from sltt_jax.cell_layers import Synaptic as Synaptic
from sltt_jax.cpu import conv_general_dilated, dot_general
from sltt_jax.varying import vary_like

BATCH_STATS = "batch_stats"


def _promote_but_bias(*arrays: Any, dtype: Any = None, inexact: bool = True) -> Any:
    """Casts what is multiplied; the bias is at least float32, and so is the sum that is its gradient."""
    inputs, kernel, bias = arrays
    inputs, kernel = _operands(inputs, kernel, dtype, inexact)
    return inputs, kernel, None if bias is None else at_least_float32(bias)


def _operands(inputs, kernel, dtype, inexact=True):
    """Casts what is multiplied; under `jax.shard_map` both vary over the same devices, as gradients want."""
    inputs, kernel = promote_dtype(inputs, kernel, dtype=dtype, inexact=inexact)
    return vary_like((inputs, kernel), (inputs, kernel))


# Linen's, computed in `dtype`; with a bias the result is at least float32.
Conv = partial(nn.Conv, conv_general_dilated=conv_general_dilated, promote_dtype=_promote_but_bias)
Dense = partial(nn.Dense, dot_general=dot_general, promote_dtype=_promote_but_bias)

# Every block of an update is given the same key, so a mask without a time axis is the same at all T steps.
Dropout = partial(nn.Dropout, broadcast_dims=(0,))


def avg_pool(xs: jax.Array, size: int) -> jax.Array:
    """Averages `size x size` windows side by side, `[T, B, H, W, C]` to `[T, B, H//size, W//size, C]`.

    The result is at least float32.
    """
    return nn.avg_pool(at_least_float32(xs), (size, size), (size, size))


def max_pool(xs: jax.Array, size: int) -> jax.Array:
    """Takes the maximum of windows as `avg_pool` does, `[T, B, H, W, C]` to `[T, B, H//size, W//size, C]`."""
    return nn.max_pool(xs, (size, size), (size, size))


def check_input(xs: jax.Array, axes: str):
    """Raises a ValueError unless `xs` is floating point and has the named axes ("T B H W C")."""
    if xs.ndim != len(axes.split()):
        raise ValueError(f"the network takes inputs [{axes.replace(' ', ', ')}], got shape {xs.shape}")
    if not jnp.issubdtype(xs.dtype, jnp.floating):
        raise ValueError(f"the network takes floating point inputs, got {xs.dtype}")


class StepBatchNorm(nn.Module):
    """Batch normalisation with the statistics of every time step by itself, as in the SLTT paper's code.

    In training each step is normalised by its own mean and variance over (B, H, W), and the running
    statistics move once a step; a block of C steps moves them in closed form to where C single steps would.
    Otherwise the one set of running statistics serves every step.

    Attributes:
      momentum: what the running statistics keep in a step; 0.9 is PyTorch's 0.1.
      epsilon: added to the variance.
      axis_name: of a `pmap` over whose devices the statistics are taken in training; None: every device has
        its own.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    axis_name: str | None = None

    @nn.compact
    def __call__(self, xs: jax.Array, offset: jax.Array | None = None, *, train: bool) -> jax.Array:
        """Normalises `xs`, `[T, B, ..., C]`, over all but its first and last axis; at least in float32.

        Args:
          xs: what is normalised, but for `offset`.
          offset: `[C]`, to be added to `xs` first: the bias of a layer before, as `NormedConv` returns it. In
            training it moves the running mean and nothing else, and has no gradient.
          train: normalise by the statistics of the batch.

        Raises:
          ValueError: in training, a step holds a single value per channel, which has no variance.
        """
        x = at_least_float32(xs)
        shape = xs.shape[-1:]
        running_mean = self.variable(BATCH_STATS, "mean", jnp.zeros, shape, x.dtype)
        running_var = self.variable(BATCH_STATS, "var", jnp.ones, shape, x.dtype)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        along = lambda a: jax.lax.broadcast_to_rank(a, x.ndim)
        if not train:
            mean = running_mean.value if offset is None else running_mean.value - offset
            centred, var = x - along(mean), along(running_var.value)
            return centred * (jax.lax.rsqrt(var + self.epsilon) * along(scale)) + along(bias)
        axis_name = None if self.is_initializing() else self.axis_name
        n = x[0, ..., 0].size * (1 if axis_name is None else jax.lax.axis_size(axis_name))
        if n < 2:
            raise ValueError(f"batch statistics need two values a channel, got shape {xs.shape}")
        y, mean, var = normalise(xs, scale, bias, self.epsilon, axis_name)
        if not self.is_initializing():
            move = partial(self._move, steps=len(x))
            mean, var = jax.lax.stop_gradient((mean, var))
            if offset is not None:
                mean = mean + along(jax.lax.stop_gradient(offset))
            running_mean.value = move(running_mean.value, mean.reshape(-1, *shape))
            running_var.value = move(running_var.value, var.reshape(-1, *shape) * (n / (n - 1)))
        return y

    def _move(self, running, batch, steps):
        """Moves the running average by the statistics `batch`, `[steps, C]`, one step after the other."""
        kept = self.momentum ** jnp.arange(steps - 1, -1, -1, dtype=batch.dtype)
        return self.momentum**steps * running + (1 - self.momentum) * (kept @ batch)


class NormedConv(nn.Module):
    """Convolution in front of a `StepBatchNorm`, which takes its bias off again.

    So the bias is not added to the activations, and nothing is summed for a gradient that is zero.

    Attributes:
      features: output channels.
      kernel_size: height and width of the window.
      strides: of both axes.
      padding: zeros on every side.
      kernel_init, bias_init: of the parameters, which are named as in Linen's `Conv`.
      dtype: of the convolution; by default that of its operands.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int = 1
    padding: int = 0
    kernel_init: nn.initializers.Initializer = nn.linear.default_kernel_init
    bias_init: nn.initializers.Initializer = nn.initializers.zeros
    dtype: Any = None

    @nn.compact
    def __call__(self, xs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the convolution of `[..., H, W, C]`, `[..., H', W', features]`, and the bias beside it."""
        shape = *self.kernel_size, xs.shape[-1], self.features
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", self.bias_init, shape[-1:], jnp.float32)
        return _convolve(xs, kernel, self.strides, self.padding, self.dtype), bias


def _convolve(xs, kernel, stride, padding, dtype):
    xs, kernel = _operands(xs, kernel, dtype)
    y = conv_general_dilated(
        xs.reshape(-1, *xs.shape[-3:]),
        kernel,
        (stride,) * 2,
        ((padding,) * 2,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return y.reshape(*xs.shape[:-3], *y.shape[1:])


def standardised(kernel: jax.Array, gain: jax.Array) -> jax.Array:
    """Standardises the weights of a convolution (scaled weight standardisation, Brock et al. 2021).

        kernel' = gain (kernel - mean) / sqrt(var fan_in + 1e-4)        per output channel, var unbiased

    Args:
      kernel: `[height, width, inputs, features]`.
      gain: `[features]`.
    """
    fan_in = math.prod(kernel.shape[:-1])
    var = kernel.var((0, 1, 2), ddof=1, keepdims=True)
    mean = kernel.mean((0, 1, 2), keepdims=True)
    gain = jax.lax.broadcast_to_rank(gain, kernel.ndim)
    return (kernel - mean) * (gain * jax.lax.rsqrt(var * fan_in + 1e-4))


class ScaledWSConv(nn.Module):
    """Convolution with scaled weight standardisation (`standardised`), which needs no batch statistics.

    Attributes:
      features: output channels.
      kernel_size: height and width of the window.
      strides: of both axes.
      padding: zeros on every side.
      kernel_init: of the kernel before standardisation; gains start at 1 and biases at 0.
      dtype: of the convolution alone; by default that of its operands.
    """

    features: int
    kernel_size: tuple[int, int]
    strides: int = 1
    padding: int = 0
    kernel_init: nn.initializers.Initializer = nn.linear.default_kernel_init
    dtype: Any = None

    @nn.compact
    def __call__(self, xs: jax.Array) -> jax.Array:
        """Convolves `[..., H, W, C]` to `[..., H', W', features]`, at least in float32."""
        kernel = self.param("kernel", self.kernel_init, (*self.kernel_size, xs.shape[-1], self.features))
        gain = self.param("gain", nn.initializers.ones, (self.features,))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel = standardised(kernel, gain)
        y = at_least_float32(_convolve(xs, kernel, self.strides, self.padding, self.dtype))
        return y + jax.lax.broadcast_to_rank(bias, y.ndim)
