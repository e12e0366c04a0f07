"""Contract of a training rule, and the loop of those that go through time block by block.

In the equations of `sltt_jax.rules` and below, `l[t]` is the loss of step t, `v[t]` the state after it, and
`stop` is `lax.stop_gradient`.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sltt_jax.blocks import Apply, PerStep, PyTree, at_least_float32, first_step, scan_blocks, time_steps
from sltt_jax.gradient_sums import GradientSum
from sltt_jax.spelling import spell
from sltt_jax.varying import vary_like

StepLoss = Callable[[Any, Any], jax.Array]
ValueAndGrad = Callable[..., tuple[tuple[jax.Array, "Aux"], PyTree]]


class Aux(NamedTuple):
    """Results of a rule beside the loss and the gradient.

    Attributes:
      losses: the instantaneous loss of every step, `[T]`; `loss` is its mean, also under SLTT-K.
      outputs: the sum of the outputs over time, `[B, ...]`, at least float32; evaluation takes its argmax.
      state: the state after the last step.
    """

    losses: jax.Array
    outputs: PyTree
    state: PyTree


class Rule(abc.ABC):
    """Base of all rules: frozen dataclasses, which may be static arguments of `jit`.

    `str` spells a rule without its defaults, "sltt", "sltt(6)", "sltt_k(2)", "bptt(remat=True)", and
    `parse_rule` reads that again.
    """

    @abc.abstractmethod
    def value_and_grad(self, apply: Apply, step_loss: StepLoss) -> ValueAndGrad:
        """Builds the function that takes the place of `jax.value_and_grad(loss, has_aux=True)`.

        Args:
          apply: the network, a pure function `apply(params, state, xs, *, temporal_gradient) -> (outputs,
            state)` of C >= 1 consecutive steps: `xs` and `outputs` are pytrees of arrays `[C, B, ...]`, and
            `state` is a pytree of all that flows from step to step. Called with `temporal_gradient=False` it
            must cut the gradient that enters through the state (`lax.stop_gradient` on the membranes of the
            step before), also between the steps of one block.
          step_loss: `step_loss(outputs, target) -> scalar` of one step; its outputs are `[B, ...]`, and so
            are the arrays of a target of that step alone.

        Returns:
          `f(params, state, inputs, target, key=None) -> ((loss, Aux), grads)`, a pure function, to be
          compiled: `inputs` is a pytree of arrays `[T, B, ...]` or `Repeat(x, T)`, `target` a pytree that is
          the same for all steps or `PerStep(target)` of arrays `[T, B, ...]`, `key` draws the steps of
          `sltt_k` and is not used by the other rules; `loss` is the mean over the steps, and `grads` has the
          structure of `params`. All sums are at least float32, and so is what is returned of them.

          To be differentiated once more, to the inputs say, it takes `sltt` or `sltt_k`. Under `bptt` and
          `tbptt` spikes are constants then with jax 0.10, whose `lax.scan` loses their surrogate derivative
          when it is differentiated twice (0.12 keeps it): differentiate the loss of `run` in their place.

        Raises:
          ValueError: (when `f` is called) the inputs have no time axis or disagree about its length, `chunk`,
            `window` or `k` is more than T, a key is missing, `step_loss` does not return a scalar, `PerStep`
            holds another number of steps, or a target that is not `PerStep` has a time axis.
          TypeError: (likewise) a parameter is not floating point, and so has no gradient.
        """

    def backward_share(self, T: int) -> float:
        """Share of T time steps that have a backward pass, 0..1: k/T under `sltt_k`, otherwise 1."""
        del T
        return 1.0

    def __str__(self) -> str:
        return spell(self)


def _add_steps(total, outputs):
    """Adds the steps of a block one after the other, so that every block size rounds alike."""
    return jax.lax.scan(lambda a, o: (jax.tree.map(jnp.add, a, o), None), total, outputs, unroll=16)[0]


def first_state(apply, params, state, inputs):
    """Makes what a loop over time starts from: the state, and zeros like the outputs of one step.

    The zeros are at least float32. Under `jax.shard_map` both vary over the devices, as what follows does.

    Raises:
      TypeError: a parameter is not floating point.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"params{jax.tree_util.keystr(path)} is {jnp.result_type(leaf)}, which has no gradient: "
                "put it into the state, or let the network close over it"
            )

    def first(params, state, x):
        block = jax.tree.map(lambda a: a[None], x)
        return apply(params, vary_like(state, (params, x)), block, temporal_gradient=False)

    outputs, _ = jax.eval_shape(first, params, state, first_step(inputs))
    total = jax.tree.map(lambda o: at_least_float32(jnp.zeros(o.shape[1:], o.dtype)), outputs)
    return vary_like((state, total), (params, inputs))


def check_target(target: PyTree, outputs: PyTree, T: int):
    """Raises a ValueError for a target whose time axis is not that of the inputs, or not said to be one.

    A time axis of a plain target would be broadcast against every step.

    Args:
      target: plain, or `PerStep` of all steps.
      outputs: of one step, `[B, ...]`.
      T: time steps of the inputs.
    """
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(target)]
    if isinstance(target, PerStep):
        for shape in shapes:
            if shape[:1] != (T,):
                steps = f"{shape[0]} time steps" if shape else "no time axis"
                raise ValueError(
                    f"PerStep holds arrays [T, B, ...], but {shape} has {steps} and the inputs T={T}"
                )
        return
    for shape in shapes:
        for o in jax.tree.leaves(outputs):
            if len(shape) == o.ndim + 1 and shape[:2] == (T, *o.shape[:1]):
                raise ValueError(
                    f"the target {shape} has a time axis, but a plain target serves all T={T} steps; "
                    "PerStep(target) is one of each step"
                )


def scan_targets(step, carry, inputs, target, size, *per_step):
    """Runs `scan_blocks` with the target of each block: `step(carry, (xs, target, *per_step))`.

    A plain target is the same for all blocks, and of `PerStep` each gets its own steps.
    """
    if isinstance(target, PerStep):
        return scan_blocks(step, carry, inputs, size, target, *per_step)
    with_target = lambda carry, block: step(carry, (block[0], target, *block[1:]))
    return scan_blocks(with_target, carry, inputs, size, *per_step)


def over_steps(f: Callable, outputs: PyTree, target: PyTree) -> Any:
    """Maps `f(outputs, target)` of one step over the outputs of C steps and their target.

    Args:
      f: of one step, as `step_loss`.
      outputs: `[C, B, ...]`.
      target: plain, or `PerStep` of the C steps.

    Returns:
      `[C, ...]`.
    """
    if isinstance(target, PerStep):
        return jax.vmap(f)(outputs, target.target)
    return jax.vmap(f, (0, None))(outputs, target)


def forward_of(apply, step_loss, temporal_gradient):
    """Builds the forward pass of a block: `(params, target, state, total, xs) -> (state, total), losses`."""

    def forward(params, target, state, total, xs):
        outputs, state = apply(params, state, xs, temporal_gradient=temporal_gradient)
        losses = at_least_float32(over_steps(step_loss, outputs, target))
        if losses.ndim != 1:
            raise ValueError(f"step_loss must return a scalar for one step, got shape {losses.shape[1:]}")
        return (state, _add_steps(total, outputs)), losses

    return forward


class Carry(NamedTuple):
    """Values that go from block to block.

    Attributes:
      state: of the network.
      outputs: the sum of the outputs so far, `[B, ...]`.
      grads: the sum of the gradients so far.
    """

    state: PyTree
    outputs: PyTree
    grads: GradientSum


class Plan(NamedTuple):
    """Steps of a rule over T time steps, and the scale of its gradient.

    Attributes:
      backward: the steps with a backward pass, `[T]` bool; None: all of them.
      scale: factor of the sum of their gradients.
    """

    backward: jax.Array | None
    scale: float


class BlockRule(Rule):
    """Base of the rules whose gradient stays within a block of steps, so that their memory is flat in T.

        grads = scale * sum over blocks of d/dtheta sum of l[t] over the block, its first state a constant

    A rule of your own is a frozen dataclass under it, with `block_steps`, `plan` and `block`, which most
    often is `block_gradient` or `block_forward` of this file; `value_and_grad` and `stream` then work for it.
    """

    @property
    @abc.abstractmethod
    def block_steps(self) -> int:
        """Time steps of a block; the last one is shorter where it does not divide T."""

    @abc.abstractmethod
    def plan(self, T: int, key: jax.Array | None = None) -> Plan:
        """Checks the rule against T steps and plans them.

        Raises:
          ValueError: the rule needs more steps than T, or a key.
        """

    @abc.abstractmethod
    def block(self, apply: Apply, step_loss: StepLoss) -> Callable:
        """Builds `block(params, target, carry, xs, backward=None) -> (carry, losses [C])`.

        `target` is that of all steps, or `PerStep` of the C steps of the block; `backward` holds the entries
        of `Plan.backward` for them, `[C]`.
        """

    def start(self, apply: Apply, params: PyTree, state: PyTree, inputs: PyTree) -> Carry:
        """Makes the carry before the first block; of `inputs`, maybe one block alone, only shapes matter."""
        state, outputs = first_state(apply, params, state, inputs)
        return Carry(state, outputs, GradientSum.zeros(params))

    def finish(self, carry: Carry, losses: Any, scale: float) -> tuple[tuple[jax.Array, Aux], PyTree]:
        """Returns what `value_and_grad` does, after the last block; `losses` of all steps are `[T]`."""
        grads = jax.tree.map(lambda g: g * jnp.asarray(scale, g.dtype), carry.grads.tree())
        return (losses.mean(), Aux(losses, carry.outputs, carry.state)), grads

    def value_and_grad(self, apply, step_loss):
        block = self.block(apply, step_loss)

        def f(params, state, inputs, target, key=None):
            T = time_steps(inputs)
            plan, start = self.plan(T, key), self.start(apply, params, state, inputs)
            check_target(target, start.outputs, T)

            def step(carry, parts):
                xs, target, *backward = parts
                return block(params, target, carry, xs, *backward)

            backward = () if plan.backward is None else (plan.backward,)
            carry, losses = scan_targets(step, start, inputs, target, self.block_steps, *backward)
            return self.finish(carry, losses, plan.scale)

        return f


def block_gradient(apply: Apply, step_loss: StepLoss, *, temporal_gradient: bool) -> Callable:
    """Builds a block of `BlockRule.block` that goes forward and backward and adds its gradient to the sum.

    The state that enters is a constant, so whatever this backward pass keeps is dead at the end of the block.
    """
    forward = forward_of(apply, step_loss, temporal_gradient)

    def block(params, target, carry, xs, backward=None):
        del backward

        def loss(params):
            end, losses = forward(params, target, carry.state, carry.outputs, xs)
            return losses.sum(), (end, losses)

        grads, ((state, outputs), losses) = jax.grad(loss, has_aux=True)(params)
        return Carry(state, outputs, carry.grads + grads), losses

    return block


def block_forward(apply: Apply, step_loss: StepLoss) -> Callable:
    """Builds a block of `BlockRule.block` that goes forward only and leaves the sum of gradients alone."""
    forward = forward_of(apply, step_loss, temporal_gradient=False)

    def block(params, target, carry, xs, backward=None):
        del backward
        (state, outputs), losses = forward(params, target, carry.state, carry.outputs, xs)
        return Carry(state, outputs, carry.grads), losses

    return block
