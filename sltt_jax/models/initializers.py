"""Initial weights of the SLTT authors' code, PyTorch's defaults among them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer

# Kaiming normal, fan out, gain of a ReLU: every convolution.
kaiming_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

# PyTorch's default for a weight, uniform in +-1/sqrt(fan_in).
torch_weight = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def torch_bias(fan_in: int) -> Initializer:
    """Builds PyTorch's default for a bias, uniform in +-1/sqrt(fan_in) of the weight beside it."""
    bound = fan_in**-0.5

    def init(key, shape, dtype=None, out_sharding=None):
        dtype = jnp.float_ if dtype is None else dtype
        return jax.random.uniform(key, shape, dtype, -bound, bound, out_sharding=out_sharding)

    return init
