"""Blocks of time steps of any cell, as every rule and chunk needs them.

A cell is one time step, `step(state, x, *params) -> (state, y)`: a pure function of the state before the step
(any pytree) and the input of the step. `over_time` makes the function of a block out of it, and `recurrent`
puts lateral weights around it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sltt_jax.bits import InBits, kept_in_bits, kept_whole
from sltt_jax.cpu import scan
from sltt_jax.traces import Traces
from sltt_jax.varying import vary_like

PyTree = Any
Step = Callable[..., tuple[PyTree, PyTree]]


def over_time(step: Step) -> Callable[..., tuple[PyTree, PyTree]]:
    """Builds `block(state, xs, *params, temporal_gradient=True) -> (state, ys)` of C >= 1 steps.

        v[t], y[t] = step(v[t-1], x[t], *params)                with stop(v[t-1]) without temporal gradient

    Without temporal gradient nothing is differentiated along time, so the loop runs without gradients, and
    the outputs are then computed again, from the states that it visited, in one pass over the block: the
    backward pass holds no loop, only arrays of C*B samples, and its products are one product each.

    Args:
      step: the cell. All that flows from step to step must be in its state; it needs no `stop_gradient`. It
        must work under `jax.vmap`. Parameters that it closes over learn as those that it is given.

    Returns:
      The function of a block: `state` is a pytree of arrays `[B, ...]`, as it was before the block and after
      it; `xs` and `ys` are pytrees of arrays `[C, B, ...]`, time first; `params` are pytrees that all steps
      share. Without temporal gradient the state after the block is a constant to differentiation.

    Raises:
      ValueError: (when the block is called) `xs` are no arrays with at least one step, or of different
        lengths, or a list, which is taken for steps apart; or `temporal_gradient` is traced.
    """
    # A cell may have what its loop knows already not computed again, as `recurrent` has its product.
    first_pass, second_pass = getattr(step, "passes", None) or (
        lambda s, x, *params, **named: (step(s, x, *params, **named)[0], None),
        lambda s, known, x, *params, **named: step(s, x, *params, **named)[1],
    )

    def block(state, xs, *params, temporal_gradient=True, **named):
        _check(xs, temporal_gradient)
        state = vary_like(state, (xs, params, named))
        if temporal_gradient:
            end, ys = scan(lambda s, x: step(s, x, *params, **named), state, xs)
            if isinstance(temporal_gradient, InBits):
                spikes = getattr(step, "spikes", None)
                ys = kept_in_bits(ys) if spikes and spikes(*params, **named) else kept_whole(ys)
            return end, ys
        state = jax.lax.stop_gradient(state)
        traced = getattr(step, "traced", None) if isinstance(temporal_gradient, Traces) else None
        if len(jax.tree.leaves(xs)[0]) == 1 and traced is None:
            end, y = step(state, jax.tree.map(lambda x: x[0], xs), *params, **named)
            return jax.lax.stop_gradient(end), jax.tree.map(lambda y: y[None], y)
        inputs, constants, others = jax.tree.map(_constant, (xs, params, named))

        def advance(s, x):
            # Made constants here, since a cell may close over parameters: the loop has no derivative by them.
            end, known = jax.lax.stop_gradient(first_pass(s, x, *constants, **others))
            return end, (s, known)

        end, (before, known) = scan(advance, state, inputs)
        if traced is not None:
            before = traced(before, temporal_gradient)
        output = lambda before, known, x: second_pass(before, known, x, *params, **named)
        return end, jax.vmap(output)(before, known, xs)

    name = getattr(step, "__name__", "step")
    block.__name__ = block.__qualname__ = name.removesuffix("_step")
    block.__doc__ = (
        f"Advances a block of C >= 1 steps, each a `{name}`: its arguments, but inputs and outputs have "
        "a time axis in front, `[C, B, ...]`, and `temporal_gradient` is as for `over_time`."
    )
    return block


def _constant(x):
    # A number stays one: made an array, `1 - 1/tau` would be rounded otherwise than in the second pass.
    return jax.lax.stop_gradient(x) if isinstance(x, jax.Array) else x


def _check(xs, temporal_gradient):
    if not isinstance(temporal_gradient, bool | Traces | InBits):
        raise ValueError(
            "temporal_gradient must be True or False when a network is traced, got "
            f"{type(temporal_gradient).__name__}: wrap partial(apply, temporal_gradient=...), or make it a "
            "static argument of jax.jit, jax.checkpoint or nn.remat"
        )
    if isinstance(xs, list):
        raise ValueError(
            f"xs must be arrays [C, B, ...], got a list of {len(xs)}: steps apart make one array by "
            "jnp.stack, and several inputs of each step are a tuple or a dict"
        )
    shapes = sorted({jnp.shape(x) for x in jax.tree.leaves(xs)}) or [()]
    lengths = {(shape or (0,))[0] for shape in shapes}
    if 0 in lengths:
        raise ValueError(f"xs must hold at least one time step, got shape {', '.join(map(str, shapes))}")
    if len(lengths) > 1:
        raise ValueError(
            f"xs must hold the same time steps in all arrays [C, B, ...], got {', '.join(map(str, shapes))}"
        )


def recurrent(step: Step) -> Step:
    """Puts lateral weights around a cell: its input gains the spikes of all its neurons one step before.

        v[t], s[t] = step(v[t-1], x[t] + s[t-1] w, *params)

    Returns:
      `recurrent_step((state, s), x, w, *params) -> ((state, s), s)`: `s` are the outputs of the step before,
      `[B, n]`, zeros at first; `x` is `[B, n]` and `w` is `[n, n]`, from neuron to neuron.
    """

    def recurrent_step(state, x, w, *params, **named):
        inner, s = state
        inner, s = step(inner, x + s @ w, *params, **named)
        return (inner, s), s

    # The lateral product of the loop is not computed again for the outputs of the block.
    def first_pass(state, x, w, *params, **named):
        inner, s = state
        lateral = s @ w
        inner, s = step(inner, x + lateral, *params, **named)
        return (inner, s), lateral

    def second_pass(state, lateral, x, w, *params, **named):
        inner, s = state
        return step(inner, x + _known_product(s, w, lateral), *params, **named)[1]

    if hasattr(step, "spikes"):
        recurrent_step.spikes = lambda w, *params, **named: step.spikes(*params, **named)  # pyright: ignore[reportFunctionMemberAccess]
    # Lateral weights learn by the trace of the spikes of the step before.
    recurrent_step.traced = lambda state, traces: (state[0], traces.through(state[1]))  # pyright: ignore[reportFunctionMemberAccess]
    recurrent_step.passes = first_pass, second_pass  # pyright: ignore[reportFunctionMemberAccess]
    recurrent_step.__name__ = f"recurrent_{getattr(step, '__name__', 'step')}"
    return recurrent_step


@jax.custom_jvp
def _known_product(s, w, value):
    """Returns `value`, which is `s @ w` with a constant `s`, to be differentiated by `w`."""
    del s, w
    return value


@_known_product.defjvp
def _known_product_jvp(primals, tangents):
    s, _, _ = primals
    # Itself, for whoever differentiates twice.
    return _known_product(*primals), s @ tangents[1]
