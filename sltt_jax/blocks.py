"""Networks over blocks of time steps: their contract with the rules, their inputs, and the loop over blocks.

Everything here and in `rules.py` is written for a network as a pure function of C >= 1 consecutive steps,

    outputs, state = apply(params, state, xs, temporal_gradient=...)        # xs, outputs: [C, B, ...]

with inputs that are a pytree of arrays `[T, B, ...]`, or `Repeat(x, T)`.
"""

import dataclasses
from collections.abc import Callable
from numbers import Integral
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from sltt_jax.varying import vary_like

PyTree = Any


class Apply(Protocol):
    """Network as a pure function of a block of time steps; see the module's docstring."""

    def __call__(
        self, params: PyTree, state: PyTree, xs: PyTree, /, *, temporal_gradient: bool
    ) -> tuple[PyTree, PyTree]: ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Repeat:
    """Input that is the same at each of T steps, kept once: `x` is a pytree of arrays `[B, ...]`.

    Raises:
      ValueError: T is no whole number.
    """

    x: PyTree
    T: int = dataclasses.field(metadata={"static": True})

    def __post_init__(self):
        if not isinstance(self.T, Integral):
            raise ValueError(f"T must be a whole number of time steps, got {self.T!r}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PerStep:
    """Target of each step by itself: `target` is a pytree of arrays `[T, B, ...]`.

    `step_loss` sees one step of it, `[B, ...]`. What is the same at all steps and belongs to it goes in with
    `jnp.broadcast_to(a, (T, *a.shape))`.
    """

    target: PyTree


def at_least_float32(x: jax.Array) -> jax.Array:
    """Casts half precision, integers and booleans to float32: for sums, which those would round or wrap."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def time_steps(inputs: PyTree) -> int:
    """Counts the time steps T of `inputs`.

    Raises:
      ValueError: there is no time axis, it is empty, or the arrays disagree about its length.
    """
    if isinstance(inputs, Repeat):
        lengths = {inputs.T}
    else:
        leaves = jax.tree.leaves(inputs)
        if not leaves or any(jnp.ndim(x) == 0 for x in leaves):
            raise ValueError("inputs must be arrays [T, B, ...], got a scalar or nothing at all")
        lengths = {len(x) for x in leaves}
    if len(lengths) > 1:
        raise ValueError(f"all inputs must have the same number of time steps, got {sorted(lengths)}")
    T = lengths.pop()
    if T < 1:
        raise ValueError(f"inputs must have at least one time step, got T={T}")
    return T


def first_step(inputs: PyTree) -> PyTree:
    """Takes the input of one step, a pytree of arrays `[B, ...]`, out of all of them.

    Raises:
      ValueError: as `time_steps`.
    """
    time_steps(inputs)
    return inputs.x if isinstance(inputs, Repeat) else jax.tree.map(lambda x: x[0], inputs)


def scan_blocks(step: Callable, carry: PyTree, inputs: PyTree, size: int, *per_step) -> tuple[PyTree, PyTree]:
    """Runs `carry, ys = step(carry, (block, *per_step))` over blocks of `size` steps, in order.

    The last block is shorter where `size` does not divide T. Blocks of a `Repeat` are made one at a time.

    Args:
      step: takes the carry and a tuple of a block of inputs `[C, B, ...]` and the same steps of `per_step`;
        returns the new carry and a pytree of arrays `[C, ...]`.
      carry: what goes from block to block.
      inputs: `[T, B, ...]` or `Repeat`.
      size: steps a block, 1..T.
      *per_step: further pytrees of arrays `[T, ...]`.

    Returns:
      The carry after the last block, and what the blocks returned, `[T, ...]`.
    """
    T = time_steps(inputs)
    static = isinstance(inputs, Repeat)
    sliced = ((), *per_step) if static else (inputs, *per_step)

    def run(carry, block, length):
        if static:
            repeat = lambda x: jnp.broadcast_to(x, (length, *x.shape))
            block = (jax.tree.map(repeat, inputs.x), *block[1:])
        return step(carry, block)

    def part(start, length):
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, length), sliced)

    blocks, rest = divmod(T, size)
    outs = []
    # No reshape of the inputs to [blocks, size, ...]: XLA would make a copy of them all.
    if blocks == 1:  # outside of a loop, so that the whole is a program without a while
        carry, ys = run(carry, part(0, size), size)
        outs.append(ys)
    else:
        if size == 1:
            step_of = lambda c, x: run(c, jax.tree.map(lambda x: x[None], x), 1)
            carry, ys = jax.lax.scan(step_of, carry, sliced, length=T)
        else:
            block_of = lambda c, i: run(c, part(i * size, size), size)
            carry, ys = jax.lax.scan(block_of, carry, jnp.arange(blocks))
        outs.append(jax.tree.map(lambda y: y.reshape(blocks * size, *y.shape[2:]), ys))
    if rest:
        carry, ys = run(carry, part(blocks * size, rest), rest)
        outs.append(ys)
    return carry, outs[0] if len(outs) == 1 else jax.tree.map(lambda *y: jnp.concatenate(y), *outs)


def run(
    apply: Apply,
    params: PyTree,
    state: PyTree,
    inputs: PyTree,
    *,
    chunk: int = 1,
    temporal_gradient: bool = True,
) -> tuple[PyTree, PyTree]:
    """Runs the forward pass alone.

    Args:
      apply, params, state, inputs: as for a rule.
      chunk: steps that go through the network together, 1..T.
      temporal_gradient: handed to `apply`, for those who differentiate this function.

    Returns:
      The outputs of all steps, `[T, B, ...]`, and the state after the last.
    """
    check_at_least_one("chunk", chunk)
    check_at_most_T("chunk", chunk, time_steps(inputs))

    def step(state, block):
        outputs, state = apply(params, state, block[0], temporal_gradient=temporal_gradient)
        return state, outputs

    state, outputs = scan_blocks(step, vary_like(state, (params, inputs)), inputs, chunk)
    return outputs, state


def check_at_least_one(name: str, value: int):
    """Raises a ValueError unless `value` is a whole number >= 1."""
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")


def check_at_most_T(name: str, value: int, T: int):
    """Raises a ValueError if `value` is more than the T time steps there are."""
    if value > T:
        raise ValueError(f"{name}={value} is more than the T={T} time steps of the inputs")
