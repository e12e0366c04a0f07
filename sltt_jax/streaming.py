"""Inputs that arrive block by block from the host, for streams that do not fit on the device."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from sltt_jax import rules
from sltt_jax.blocks import Apply, time_steps
from sltt_jax.rules import StepLoss


def stream(rule: rules.Rule, apply: Apply, step_loss: StepLoss) -> Callable:
    """`rule.value_and_grad` over an iterable of blocks instead of one array of T steps.

    The device holds two blocks of input at the most, the carried state and one sum of gradients, whatever the
    length of the stream. Build the function once: each call of `stream` compiles anew.

    Args:
      rule: `sltt`, `sltt_k` or `tbptt`.
      apply, step_loss: as for `rule.value_and_grad`.

    Returns:
      `f(params, state, blocks, target, key=None, *, T) -> ((loss, aux), grads)`, as `rule.value_and_grad`.
      `blocks` yields pytrees of arrays `[C, B, ...]` with C the rule's `chunk` or `window` (1 for `sltt_k`),
      except that the last holds the rest of the T steps. `aux.losses` is kept on the host.

    Raises:
      ValueError: the rule is `bptt`, which needs all steps at once; and, when `f` is called: the blocks have
        another length, or do not add up to T.
    """
    if isinstance(rule, rules.bptt):
        raise ValueError("bptt needs all time steps at once and cannot stream; use tbptt(window) or sltt")
    step = jax.jit(rule._block(apply, step_loss), donate_argnums=2)

    def f(params, state, blocks: Iterable, target, key=None, *, T: int):
        if T < 1:
            raise ValueError(f"T must be >= 1, got {T}")
        per_step, scale = rule._plan(T, key)
        per_step = [np.asarray(x) for x in per_step]
        carry, losses, seen = None, [], 0
        for xs in blocks:
            steps, due = time_steps(xs), min(rule._size, T - seen)
            if steps != due:
                raise ValueError(f"the block at step {seen} of T={T} must hold {due} steps, got {steps}")
            if carry is None:
                # A copy, since the loop donates its carry and the caller keeps the state.
                carry = jax.tree.map(jnp.copy, rules._start(apply, params, state, xs))
            carry, loss = step(params, target, carry, xs, *(x[seen : seen + steps] for x in per_step))
            if losses:  # of the block before, so that the device is never waited for
                losses[-1] = np.asarray(losses[-1])
            losses.append(loss)
            seen += steps
        if seen < T:
            raise ValueError(f"the stream ended after {seen} of T={T} time steps")
        return rules._finish(carry, np.concatenate(losses), scale)

    return f
