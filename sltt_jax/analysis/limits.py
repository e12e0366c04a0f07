"""Largest batch that fits into memory, and a check that more time steps do not take more of it."""

import math
from collections.abc import Callable, Sequence

from sltt_jax.analysis.costs import temp_bytes, trace_gradient, with_time_steps
from sltt_jax.blocks import Apply, PyTree
from sltt_jax.rules import BlockRule, Rule, StepLoss, bptt

GIGABYTE = 1e9

# BPTT has to add this many times what a flat rule may, or the check would not see what it is there for.
CONTROL = 10


def largest_batch(total_bytes: Callable[[int], float], gigabytes: float, *, at_most: int = 2**16) -> int:
    """Finds the largest batch whose program fits into memory.

        def total_bytes(B):
            x = jax.ShapeDtypeStruct((B, 32, 32, 3), jnp.float32)
            params, state = jax.eval_shape(partial(functional.init, model), jax.random.key(0), x)
            y = jax.ShapeDtypeStruct((B,), jnp.int32)
            return cost(apply, step_loss, rule, params, state, Repeat(x, 6), y).total_bytes

        largest_batch(total_bytes, gigabytes=16)

    A search between the largest size known to fit and the smallest known not to. Memory is almost linear in
    the batch, so that the line through two sizes is tried first, and halves of the interval in between; a
    handful of programs is compiled. The answer is one of them, and the next larger size another.

    Args:
      total_bytes: of a batch size, from 1 up; not falling, and infinite where all that is known is that it
        is too much.
      gigabytes: of memory, of 10^9 bytes.
      at_most: the end of the search.

    Returns:
      A number in 0..at_most; 0 if a batch of one sample does not fit.

    Raises:
      ValueError: gigabytes is not above 0, or at_most is below 1.
    """
    if not gigabytes > 0:
        raise ValueError(f"gigabytes must be > 0, got {gigabytes}")
    if at_most < 1:
        raise ValueError(f"at_most must be >= 1, got {at_most}")
    limit = gigabytes * GIGABYTE
    fits, fits_not, sizes = 0, at_most + 1, {}
    guess = 1
    while fits_not - fits > 1:
        guess = min(max(guess, fits + 1), fits_not - 1)
        sizes[guess] = total_bytes(guess)
        if sizes[guess] <= limit:
            fits = guess
        else:
            fits_not = guess
        if len(sizes) % 3 == 0 or math.isinf(sizes[guess]):  # so that it ends soon, whatever the curve
            guess = (fits + fits_not) // 2 if fits_not <= at_most else 2 * fits
        else:
            guess = _on_the_line(sizes, limit)
    return fits


def _on_the_line(sizes: dict[int, float], limit: float) -> int:
    """Estimates the batch size that takes `limit` bytes, by the line through the two sizes nearest to it."""
    known = [item for item in sizes.items() if item[1] < math.inf]
    if len(known) == 1:
        return 8
    nearest = sorted(known, key=lambda item: (abs(item[1] - limit), -item[0]))
    (a, bytes_a), (b, bytes_b) = nearest[:2]
    if bytes_a == bytes_b:
        return 2 * max(a, b)
    return int(a + (limit - bytes_a) * (b - a) / (bytes_b - bytes_a))


def assert_memory_flat(
    apply: Apply,
    step_loss: StepLoss,
    rule: Rule,
    params: PyTree,
    state: PyTree,
    inputs: PyTree,
    target: PyTree,
    *,
    T: Sequence[int] | None = None,
    tolerance: float = 0.01,
):
    """Asserts, in the tests of a network of your own, that temporaries under a rule do not grow with time.

        def test_memory():
            assert_memory_flat(apply, step_loss, sltt(), params, state, Repeat(x, 8), y)

    The same network under `bptt()` is compiled as a control, which has to grow. Nothing is run.

    Args:
      apply, step_loss, rule, params, state, inputs, target: as for `cost`; the T of the inputs does not
        matter.
      T: numbers of steps that are compared; 8 and 64 blocks of the rule by default. All should have whole
        blocks, and more than one: a program without a loop is another one.
      tolerance: share of its temporaries that a rule may add.

    Raises:
      AssertionError: the temporaries grow.
      RuntimeError: those of `bptt()` do not, so that nothing follows from a rule's.
      ValueError: fewer than two numbers of steps, or the rule does not go with them.
    """
    if T is None:
        block = rule.block_steps if isinstance(rule, BlockRule) else 1
        T = 8 * block, 64 * block
    if len(set(T)) < 2:
        raise ValueError(f"T must be two or more numbers of time steps, got {tuple(T)}")

    def temporaries(rule):
        found = {}
        for t in sorted(set(T)):
            at_t = with_time_steps(inputs, target, t)
            traced = trace_gradient(apply, step_loss, rule, params, state, *at_t)
            found[t] = temp_bytes(traced.lower().compile())
        return found

    def listed(at):
        return ", ".join(f"{n} bytes at T={t}" for t, n in at.items())

    at, control = temporaries(rule), temporaries(bptt())
    allowed = tolerance * at[min(at)]
    if control[max(control)] - control[min(control)] <= CONTROL * allowed:
        raise RuntimeError(
            f"the temporaries of bptt() hardly grow with T either ({listed(control)}), so that this shows "
            "nothing; take T further apart, or a larger network"
        )
    if max(at.values()) - at[min(at)] > allowed:
        raise AssertionError(
            f"the temporaries of {rule} grow with T: {listed(at)}; those of bptt(): {listed(control)}"
        )
