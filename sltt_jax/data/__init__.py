"""Data sets and the batches made of them."""

from sltt_jax.data.arrays import ArrayData
from sltt_jax.data.digits import load_digits
from sltt_jax.data.own import BatchData, Wanted
from sltt_jax.data.pipeline import ArrayBatches, Batch, Batches, Prefetch, padded_batches

__all__ = [
    "ArrayBatches",
    "ArrayData",
    "Batch",
    "BatchData",
    "Batches",
    "Prefetch",
    "Wanted",
    "load_digits",
    "padded_batches",
]
