"""Linen networks as the pure functions that rules take.

The network's `__call__(xs, *, train, temporal_gradient)` works on blocks `[T, B, ...]`; its membranes and
batch statistics are collections of variables, and together they are the `state` of the rules.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from sltt_jax.blocks import Apply, PyTree
from sltt_jax.layers import BATCH_STATS


def _compiled_once(f):
    """Compiles `f(model, *arrays)`, once for every network and shape; whoever calls it again traces nothing.

    A network that holds arrays, such as one `tau` for every channel, is no key of a program; `f` then runs as
    it is.
    """
    compiled = jax.jit(f, static_argnums=0)

    @functools.wraps(f)
    def call(model, *arrays):
        try:
            hash(model)
        except TypeError:
            return f(model, *arrays)
        return compiled(model, *arrays)

    return call


@_compiled_once
def init(model: nn.Module, key: jax.Array, x: jax.Array) -> tuple[PyTree, PyTree]:
    """Draws the parameters of a network; it is compiled, and so takes one program instead of dozens.

    Args:
      model: the network.
      key: draws the parameters.
      x: the input of one step, arrays `[B, ...]`; only shapes and types matter, and integers count as
        float32.

    Returns:
      `(params, state)`; the state is a dict of collections, its membranes at rest and of the batch size of
      `x`.
    """
    block = jax.tree.map(lambda a: a[None], _floating(x))
    variables = model.init(key, block, train=False, temporal_gradient=True)
    params = variables.pop("params")
    return params, variables


def kept(model: nn.Module) -> tuple[str, ...]:
    """Names the collections that go from batch to batch; all others start anew with every batch.

    They are the batch statistics, and what a network lists in an attribute `kept` of its class.
    """
    return (BATCH_STATS, *getattr(model, "kept", ()))


def at_rest(model: nn.Module, state: PyTree, x: jax.Array) -> PyTree:
    """Puts membranes, and whatever else is not `kept`, at rest.

    Nothing of the network is computed for it; after `init` for the same shape it is not traced either.

    Args:
      model: the network.
      state: its collections; only those that are `kept` need be there.
      x: the input of one step, `[B, ...]`, of the batch to come.
    """
    return {**state, **_fresh(model, x)}


@_compiled_once
def _fresh(model, x):
    _, state = init(model, jax.random.key(0), x)
    return {name: value for name, value in state.items() if name not in kept(model)}


def applier(
    model: nn.Module, *, train: bool = True, key: jax.Array | None = None, record: tuple[str, ...] = ()
) -> Apply:
    """Builds `apply(params, state, xs, *, temporal_gradient) -> (outputs, state)` of a network.

    Integer inputs (event counts) become float32 here, a block at a time, and so never all at once.

    Args:
      model: the network.
      train: batch statistics and dropout as in training.
      key: draws the dropout masks; the same for all time steps of an update.
      record: collections that layers write and nothing carries on ("firing_rate"); with any, the outputs are
        `(outputs, {collection: values})`.
    """

    def apply(params, state, xs, *, temporal_gradient):
        outputs, changed = model.apply(
            {"params": params, **state},
            _floating(xs),
            train=train,
            temporal_gradient=temporal_gradient,
            mutable=[*state, *record],
            rngs=None if key is None else {"dropout": key},
        )
        state = {name: changed[name] for name in state}
        return (outputs, {name: changed.get(name, {}) for name in record}) if record else outputs, state

    return apply


def _floating(xs):
    """Makes the integers of a pytree, such as event counts, float32."""
    cast = lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.integer) else x
    return jax.tree.map(cast, xs)
