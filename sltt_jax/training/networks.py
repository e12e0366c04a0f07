"""What updates and evaluations need of a network: of a Linen module, or of a pure function of one's own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from sltt_jax import functional
from sltt_jax.blocks import Apply, PyTree
from sltt_jax.layers import FIRING_RATE

# `start(variables, x) -> state`: the state at rest, for the input `x` of one step, `[B, ...]`; () of a
# network without one.
Start = Callable[[PyTree, PyTree], PyTree]

# `kept(state) -> variables`: what of a state goes on to the next batch.
Kept = Callable[[PyTree], PyTree]


class Network(NamedTuple):
    """A network, and what its state is made of.

    Attributes:
      train: `train(key) -> apply`, the network in training, whose dropout masks the key draws.
      evaluate: the network in evaluation; its outputs are `(outputs, rates)`, where the rates are those that
        layers recorded, `[C, B]` each.
      start: `start(variables, x) -> state`, the state at rest.
      kept: `kept(state, variables) -> variables` for the next batch, of those of this one.
      cast: `cast(params) -> params`, the parameters as all the time steps of an update take them.
    """

    train: Callable[[jax.Array], Apply]
    evaluate: Apply
    start: Start
    kept: Callable[[PyTree, PyTree], PyTree]
    cast: Callable[[PyTree], PyTree]


def as_network(model: nn.Module | Apply, start: Start | None, kept: Kept | None) -> Network:
    """Makes a network of what `make_update` and `make_evaluate` take.

    Raises:
      ValueError: a function without a `start`, or a module with one, or with a `kept`.
    """
    if isinstance(model, nn.Module):
        if start is not None or kept is not None:
            raise ValueError("start and kept are for networks that are functions; a Linen module needs none")
        return _of_module(model)
    if start is None:
        raise ValueError(
            "a network that is a function needs start(variables, x) -> state, its state before the first step"
        )
    return Network(
        train=lambda key: model,
        evaluate=_without_rates(model),
        start=_checked(start),
        kept=lambda state, variables: variables if kept is None else kept(state),
        cast=lambda params: params,
    )


def _checked(start):
    def first(variables, x):
        state = start(variables, x)
        if state is None:
            raise ValueError("start must return the state of the network, or () where it has none; got None")
        return state

    return first


def _of_module(model: nn.Module) -> Network:
    recording = functional.applier(model, train=False, record=(FIRING_RATE,))

    def evaluate(params, state, xs, *, temporal_gradient):
        (outputs, recorded), state = recording(params, state, xs, temporal_gradient=temporal_gradient)
        return (outputs, recorded[FIRING_RATE]), state

    return Network(
        train=lambda key: functional.applier(model, train=True, key=key),
        evaluate=evaluate,
        start=lambda variables, x: functional.at_rest(model, variables, x),
        kept=lambda state, variables: {name: state[name] for name in variables},
        cast=lambda params: functional.cast_kernels(model, params),
    )


def _without_rates(apply: Any) -> Apply:
    def evaluate(params, state, xs, *, temporal_gradient):
        outputs, state = apply(params, state, xs, temporal_gradient=temporal_gradient)
        return (outputs, {}), state

    return evaluate
