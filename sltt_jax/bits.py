"""Spikes that the backward pass keeps as single bits, and computes the rest again from (`bptt(bits=True)`).

The rule calls a network with `IN_BITS` in the place of `temporal_gradient=True`, and every block of cells
then hands on the spikes that it has packed, eight to a byte, and unpacked: under `jax.checkpoint` with
`KEPT` as its policy nothing else of the block is kept, and every layer's currents, statistics and membranes
are computed again from the bits of the layer before.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

_NAME = "sltt_jax_kept"

KEPT = jax.checkpoint_policies.save_only_these_names(_NAME)


class InBits:
    """True, as `temporal_gradient=True`, and asks cells to keep their spikes in bits."""


IN_BITS = InBits()


def kept_in_bits(spikes: jax.Array) -> jax.Array:
    """Returns the spikes, 0 or 1, of any shape and type, as a backward pass finds them again in its bits."""
    bits = checkpoint_name(jnp.packbits(jax.lax.stop_gradient(spikes).astype(bool)), _NAME)
    again = jnp.unpackbits(bits, count=spikes.size).reshape(spikes.shape)
    return _straight_through(spikes, again.astype(spikes.dtype))


def kept_whole(ys: Any) -> Any:
    """Returns outputs that are no spikes, a pytree of arrays, which a backward pass finds again whole."""
    return jax.tree.map(lambda y: checkpoint_name(y, _NAME), ys)


@jax.custom_jvp
def _straight_through(spikes, again):
    """Returns `again`, which has the values of `spikes`, to be differentiated as `spikes`."""
    del spikes
    return again


@_straight_through.defjvp
def _straight_through_jvp(primals, tangents):
    return _straight_through(*primals), tangents[0]
