"""Choice of a chunk for `sltt` or `bptt`, made from compiled programs without running one."""

import dataclasses
import functools
import math

import jax

from sltt_jax.analysis.costs import temp_bytes, trace_gradient
from sltt_jax.analysis.limits import GIGABYTE
from sltt_jax.blocks import Apply, PyTree, time_steps
from sltt_jax.rules import StepLoss, bptt, sltt

# What a block moves for every byte of the parameters: it reads them forward and backward, writes their
# gradient, and adds it up, which reads two and writes one.
_MOVED = 6

# Bytes that the cores of a CPU share at the last level of their cache, more or less. On an accelerator the
# cache is too small to make a difference.
_CPU_CACHE = 16 * 2**20

# How often a byte of what a block computes and does not fit is moved: by every pass over it, forward and
# backward. From the times of ten networks (experiments/SPEED.md).
_SPILLED = 20

# Gigabytes of temporaries where nothing else is said, on a CPU; and on an accelerator the share of its
# memory. The rest is for parameters, the state of the optimizer, batches, and what convolutions need beside.
_CPU_GIGABYTES = 4.0
_SHARE = 0.8


def auto_chunk(
    apply: Apply,
    step_loss: StepLoss,
    params: PyTree,
    state: PyTree,
    inputs: PyTree,
    target: PyTree,
    *,
    gigabytes: float | None = None,
    rule: sltt | bptt | None = None,
) -> int:
    """Chooses the chunk of a rule that moves the fewest bytes, of those that fit into memory.

    A long chunk reads the parameters and adds to their gradient less often; but what it computes is more at
    a time, and on a CPU it should stay in the cache. Both are known from the memory of two programs, that of
    `chunk=1` and that of `chunk=T` under SLTT. BPTT keeps all steps at any chunk, and a long one may take
    less memory than a short one, which keeps what a loop has to hand on. It is a model, which the clock may
    correct: `time_update`.

    Args:
      apply, step_loss, params, state, inputs, target: as for `cost`; of arrays only shapes and types matter.
      gigabytes: that the temporaries may take, of 10^9 bytes; by default 4 on a CPU, and elsewhere four
        fifths of what JAX may take of the device's own memory. BPTT keeps all steps at any chunk: where it
        needs more than the default, that chunk is chosen that takes least.
      rule: whose chunk it is; by default that of `sltt`.

    Returns:
      A divisor of T, so that all blocks are of one length.

    Raises:
      ValueError: gigabytes is not above 0, or no chunk fits into it.
    """
    rule = sltt() if rule is None else rule
    may_take_more = gigabytes is None and isinstance(rule, bptt)
    if gigabytes is None:
        gigabytes = _memory_of_device()
    if not gigabytes > 0:
        raise ValueError(f"gigabytes must be > 0, got {gigabytes}")
    T = time_steps(inputs)

    @functools.cache
    def temporaries(rule):
        traced = trace_gradient(apply, step_loss, rule, params, state, inputs, target)
        return temp_bytes(traced.lower().compile())

    limit = gigabytes * GIGABYTE
    taken = lambda chunk: temporaries(dataclasses.replace(rule, chunk=chunk))
    divisors = [c for c in range(1, T + 1) if T % c == 0]
    of_step = max((temporaries(sltt(T)) - temporaries(sltt())) / (T - 1), 1) if T > 1 else 1
    weights = sum(math.prod(p.shape) * p.dtype.itemsize for p in jax.tree.leaves(params))
    cache = _CPU_CACHE if jax.default_backend() == "cpu" else math.inf

    def moved(chunk):
        beyond_cache = max(0.0, 1 - cache / (chunk * of_step))
        return _MOVED * weights * T / chunk + _SPILLED * of_step * T * beyond_cache

    def fits(chunk):
        # What is far too much under SLTT is not compiled.
        if isinstance(rule, sltt) and temporaries(sltt()) + (chunk - 1) * of_step > limit:
            return False
        return taken(chunk) <= limit

    for chunk in sorted(divisors, key=moved):
        if fits(chunk):
            return chunk
    if may_take_more:
        return min(divisors, key=taken)
    raise ValueError(
        f"{type(rule).__name__}(chunk=1) takes {taken(1) / GIGABYTE:.3f} GB of temporaries, more than the "
        f"{gigabytes} GB given"
    )


def _memory_of_device():
    """Gigabytes that temporaries may take on the first device of this process."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return _CPU_GIGABYTES
    return _SHARE * device.memory_stats()["bytes_limit"] / GIGABYTE
