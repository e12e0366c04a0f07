"""State of training, and how it begins."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from sltt_jax import functional
from sltt_jax.blocks import PyTree, first_step
from sltt_jax.data.encoders import Encoder
from sltt_jax.training.loss_scale import LossScale, initial_loss_scale


class TrainState(NamedTuple):
    """State that training carries from update to update.

    Attributes:
      step: updates done, int32 scalar.
      params: parameters.
      variables: what else of a network goes on to the next update (batch statistics); membranes start anew.
      opt_state: of the optimizer.
      key: with `step` it draws augmentation, dropout masks and the steps of SLTT-K; it never changes.
      loss_scale: of float16; None otherwise.
    """

    step: jax.Array
    params: PyTree
    variables: PyTree
    opt_state: optax.OptState
    key: jax.Array
    loss_scale: LossScale | None = None


def state_of(
    params: PyTree,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    variables: PyTree = None,
    *,
    scale_loss: bool = False,
) -> TrainState:
    """Makes the state before the first update, with copies of what it is made of: updates take its memory.

    Args:
      params: parameters that are there already.
      optimizer: of the updates to come.
      key: of the run.
      variables: what else of the network goes on from update to update; by default nothing does.
      scale_loss: for networks that compute in float16.
    """
    variables = {} if variables is None else variables
    state = TrainState(
        jnp.zeros((), jnp.int32), params, variables, optimizer.init(params), key,
        initial_loss_scale() if scale_loss else None,
    )  # fmt: skip
    # Also of what the optimizer made: it may hold the parameters themselves, and no memory is given twice.
    return jax.tree.map(jnp.copy, state)


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    encode: Encoder,
    key: jax.Array,
    x: jax.Array,
    *,
    scale_loss: bool = False,
) -> TrainState:
    """Draws a fresh training state; it is compiled, once for the same network, optimizer and encoder.

    Args:
      model: the network.
      optimizer: of the updates to come.
      encode: makes inputs of a batch.
      key: draws the parameters, and becomes the key of the run.
      x: inputs of a batch, of which only shape and dtype matter.
      scale_loss: for networks that compute in float16.
    """
    fixed = model, optimizer, encode, scale_loss
    try:
        hash(fixed)
    except TypeError:  # a network that holds arrays is no key of a program
        return jax.jit(lambda key, x: _draw(*fixed, key, x))(key, x)
    return _compiled_draw(*fixed, key, x)


def _draw(model, optimizer, encode, scale_loss, key, x):
    init_key, run_key = jax.random.split(key)
    params, variables = functional.init(model, init_key, first_step(encode(x, None)))
    kept = {name: value for name, value in variables.items() if name in functional.kept(model)}
    return state_of(params, optimizer, run_key, kept, scale_loss=scale_loss)


_compiled_draw = jax.jit(_draw, static_argnums=(0, 1, 2, 3))
