"""Inputs that arrive block by block from the host, for streams that do not fit on the device."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from sltt_jax.block_rule import BlockRule, Rule, StepLoss, check_target
from sltt_jax.blocks import Apply, PerStep, time_steps


def stream(rule: Rule, apply: Apply, step_loss: StepLoss) -> Callable:
    """`rule.value_and_grad` over an iterable of blocks instead of one array of T steps.

    The device holds two blocks of input at the most, the carried state and one sum of gradients, whatever the
    length of the stream. Build the function once: each call of `stream` compiles anew.

    Args:
      rule: a `BlockRule`: `sltt`, `sltt_k`, `tbptt` or one of your own.
      apply, step_loss: as for `rule.value_and_grad`.

    Returns:
      `f(params, state, blocks, target, key=None, *, T) -> ((loss, aux), grads)`, as `rule.value_and_grad`.
      `blocks` yields pytrees of arrays `[C, B, ...]` with C the rule's `block_steps` (`chunk`, `window`, or 1
      for `sltt_k`), except that the last holds the rest of the T steps. `PerStep` holds the targets of all T
      steps; where they are NumPy arrays, the device is given those of a block at a time. `aux.losses` is kept
      on the host.

    Raises:
      ValueError: the rule is no `BlockRule` (`bptt` needs all steps at once); and, when `f` is called: the
        blocks have another length or do not add up to T, or the target is not one of T steps.
    """
    if not isinstance(rule, BlockRule):
        raise ValueError(f"{rule} needs all time steps at once and cannot stream; use tbptt(window) or sltt")
    step = jax.jit(rule.block(apply, step_loss), donate_argnums=2)

    def f(params, state, blocks: Iterable, target, key=None, *, T: int):
        if T < 1:
            raise ValueError(f"T must be >= 1, got {T}")
        plan = rule.plan(T, key)
        masks = () if plan.backward is None else (np.asarray(plan.backward),)
        carry, losses, seen = None, [], 0
        for xs in blocks:
            steps, due = time_steps(xs), min(rule.block_steps, T - seen)
            if steps != due:
                raise ValueError(f"the block at step {seen} of T={T} must hold {due} steps, got {steps}")
            if carry is None:
                # A copy, since the loop donates its carry and the caller keeps the state.
                carry = jax.tree.map(jnp.copy, rule.start(apply, params, state, xs))
                check_target(target, carry.outputs, T)
            here = slice(seen, seen + steps)
            carry, loss = step(params, _of_steps(target, here), carry, xs, *(m[here] for m in masks))
            if losses:  # of the block before, so that the device is never waited for
                losses[-1] = np.array(losses[-1])  # a copy: a view would keep what the device has of it
            losses.append(loss)
            seen += steps
        if carry is None or seen < T:
            raise ValueError(f"the stream ended after {seen} of T={T} time steps")
        return rule.finish(carry, np.concatenate(losses), plan.scale)

    return f


def _of_steps(target, steps: slice):
    return jax.tree.map(lambda a: a[steps], target) if isinstance(target, PerStep) else target
