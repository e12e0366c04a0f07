"""Data sets and the batches made of them."""

from sltt_jax.data.arrays import ArrayData, padded_batches, shuffled_batches
from sltt_jax.data.digits import load_digits

__all__ = ["ArrayData", "load_digits", "padded_batches", "shuffled_batches"]
