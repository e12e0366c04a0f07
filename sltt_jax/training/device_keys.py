"""Keys of random numbers in the state of a network on several devices, such as those of `nnx.Dropout`."""

import jax
import jax.numpy as jnp

from sltt_jax.blocks import PyTree


def keys_of_device(state: PyTree, axis_name: str) -> PyTree:
    """Folds the number of the device into the typed keys of a state, so that each draws its own masks."""

    def fold(key):
        # The number has the shape of the keys, of which a state may hold arrays.
        numbers = jnp.full(key.shape, jax.lax.axis_index(axis_name))
        return jnp.vectorize(jax.random.fold_in)(key, numbers)

    return _over_keys(fold, state)


def keys_of_first_device(state: PyTree, axis_name: str) -> PyTree:
    """Gives the typed keys that the first device has to all of them, for the state that they share."""

    def first(key):
        numbers = jax.random.key_data(key)
        own = jnp.where(jax.lax.axis_index(axis_name) == 0, numbers, 0)
        return jax.random.wrap_key_data(jax.lax.psum(own, axis_name), impl=jax.random.key_impl(key))

    return _over_keys(first, state)


def _over_keys(f, tree):
    is_key = lambda x: jnp.issubdtype(jnp.result_type(x), jax.dtypes.prng_key)
    return jax.tree.map(lambda x: f(x) if is_key(x) else x, tree)
