"""Spiking networks in Linen, `model(xs, train=..., temporal_gradient=...)` on blocks `[T, B, ...]`."""

from sltt_jax.models.convnet import ConvNet
from sltt_jax.models.mlp import MLP

__all__ = ["MLP", "ConvNet"]
