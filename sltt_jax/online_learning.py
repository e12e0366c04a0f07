"""Updates at every block of steps, in place of one after the last: learning from streams without end."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from sltt_jax.block_rule import BlockRule, Carry, Rule, StepLoss, check_target
from sltt_jax.blocks import Apply, PyTree, time_steps


class Online(NamedTuple):
    """All that goes from one update to the next: saved and read again, a run is resumed with the same bits.

    Attributes:
      params: the parameters.
      opt_state: of the optimizer.
      carry: of the rule: the state of the network, and the sums of the last block.
    """

    params: PyTree
    opt_state: PyTree
    carry: Carry


def online(
    rule: Rule, apply: Apply, step_loss: StepLoss, optimizer: optax.GradientTransformation
) -> tuple[Callable, Callable]:
    """Builds a driver that applies the optimizer after each block (Xiao et al. 2022: OTTT_O).

        theta <- optimizer(theta, 1/C sum of the gradients of the C steps of the block)

    Memory does not grow with the number of steps, and nothing needs to know how many there will be.

    Args:
      rule: a `BlockRule`: `sltt`, `ottt`, `tbptt` or one of your own, whose blocks all have a backward pass.
      apply, step_loss: as for `rule.value_and_grad`.
      optimizer: of optax.

    Returns:
      `start(params, state, xs) -> Online`, of copies of the parameters and the state, and of one block of
      inputs, of which only shapes matter; and `update(learner, xs, target) -> (Online, losses [C])`, a pure
      function, to be compiled with its first argument donated: `xs` are the inputs of the next C steps,
      `[C, B, ...]`, and `target` is theirs, plain or `PerStep`. The state of the network is carried on;
      `learner.carry.outputs` is the sum of the outputs of the block.

    Raises:
      ValueError: the rule is no `BlockRule` (`bptt` needs all steps at once) or skips steps (`sltt_k`); and,
        when `update` is called, the block has another length than the rule's, or the target is not one of
        its steps.
    """
    if not isinstance(rule, BlockRule):
        raise ValueError(
            f"{rule} needs all time steps at once and cannot learn online; use tbptt(window) or sltt"
        )
    if rule.plan(rule.block_steps * 2, jax.random.key(0)).backward is not None:
        raise ValueError(f"{rule} goes backward at some of a known number of steps only: use sltt or ottt")
    block = rule.block(apply, step_loss)

    def start(params, state, xs):
        first = Online(params, optimizer.init(params), rule.start(apply, params, state, xs))
        # Copies, since updates take the memory of all of it: the caller keeps what is his, and no array is in
        # it twice.
        return jax.tree.map(jnp.copy, first)

    def update(learner, xs, target):
        if (C := time_steps(xs)) != rule.block_steps:
            raise ValueError(f"a block of {rule} has {rule.block_steps} steps, got {C}")
        params, opt_state, carry = learner
        check_target(target, carry.outputs, C)
        outputs, grads = jax.tree.map(jnp.zeros_like, (carry.outputs, carry.grads))
        carry, losses = block(params, target, Carry(carry.state, outputs, grads), xs)
        mean = jax.tree.map(lambda g: g / C, carry.grads.tree())
        changes, opt_state = optimizer.update(mean, opt_state, params)
        return Online(optax.apply_updates(params, changes), opt_state, carry), losses

    return start, update
