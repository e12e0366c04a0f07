"""Choice of a chunk for `sltt`, made from compiled programs without running one."""

import math

import jax

from sltt_jax.analysis.costs import temp_bytes, trace_gradient
from sltt_jax.analysis.limits import GIGABYTE
from sltt_jax.blocks import Apply, PyTree, time_steps
from sltt_jax.rules import StepLoss, sltt

# What a block moves for every byte of the parameters: it reads them forward and backward, writes their
# gradient, and adds it up, which reads two and writes one.
_MOVED = 6

# Bytes that the cores of a CPU share at the last level of their cache, more or less. On an accelerator the
# cache is too small to make a difference.
_CPU_CACHE = 16 * 2**20

# How often a byte of what a block computes and does not fit is moved: by every pass over it, forward and
# backward. From the times of ten networks (experiments/SPEED.md).
_SPILLED = 20


def auto_chunk(
    apply: Apply,
    step_loss: StepLoss,
    params: PyTree,
    state: PyTree,
    inputs: PyTree,
    target: PyTree,
    *,
    gigabytes: float,
) -> int:
    """Chooses the chunk of `sltt` that moves the fewest bytes, of those that fit into memory.

    A long chunk reads the parameters and adds to their gradient less often; but what it computes is more at a
    time, and on a CPU it should stay in the cache. Both are known from the memory of two programs, that of
    `chunk=1` and that of `chunk=T`. It is a model, which the clock may correct: `time_update`.

    Args:
      apply, step_loss, params, state, inputs, target: as for `cost`; of arrays only shapes and types matter.
      gigabytes: that the temporaries may take, of 10^9 bytes.

    Returns:
      A divisor of T, so that all blocks are of one length.

    Raises:
      ValueError: gigabytes is not above 0, or not even `chunk=1` fits into it.
    """
    if not gigabytes > 0:
        raise ValueError(f"gigabytes must be > 0, got {gigabytes}")
    T = time_steps(inputs)

    def temporaries(chunk):
        traced = trace_gradient(apply, step_loss, sltt(chunk), params, state, inputs, target)
        return temp_bytes(traced.lower().compile())

    one, limit = temporaries(1), gigabytes * GIGABYTE
    if one > limit:
        raise ValueError(
            f"sltt(chunk=1) takes {one / GIGABYTE:.3f} GB of temporaries, more than the {gigabytes} GB given"
        )
    divisors = [c for c in range(1, T + 1) if T % c == 0]
    if T == 1:
        return 1
    of_step = max((temporaries(T) - one) / (T - 1), 1)
    weights = sum(math.prod(p.shape) * p.dtype.itemsize for p in jax.tree.leaves(params))
    cache = _CPU_CACHE if jax.default_backend() == "cpu" else math.inf

    def moved(chunk):
        beyond_cache = max(0.0, 1 - cache / (chunk * of_step))
        return _MOVED * weights * T / chunk + _SPILLED * of_step * T * beyond_cache

    def fits(chunk):
        estimated = one + (chunk - 1) * of_step
        return estimated <= limit and temporaries(chunk) <= limit

    return next(chunk for chunk in sorted(divisors, key=moved) if fits(chunk))
