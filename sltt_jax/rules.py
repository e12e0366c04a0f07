"""Training rules: drop-in replacements of `jax.value_and_grad` for networks that run over time.

A rule knows nothing of neurons or layers. It takes a network as a pure function of a *block* of C >= 1
consecutive time steps, and the loss of one step, which it averages over the T steps:

    outputs, state = apply(params, state, xs, temporal_gradient=...)        # xs, outputs: [C, B, ...]
    loss = step_loss(outputs[t], target)                  # a scalar; target[t] where it is PerStep(target)

    (loss, aux), grads = sltt().value_and_grad(apply, step_loss)(params, state, inputs, target, key)

What the four rules below have in common, and what a rule of your own needs, is in `sltt_jax/block_rule.py`.
In the equations `l[t]` is the loss of step t = 1, ..., T, `v[t]` the state after it, and `stop` is
`lax.stop_gradient`.
"""

import dataclasses
from collections.abc import Sequence
from numbers import Integral

import jax
import jax.numpy as jnp

from sltt_jax.bits import IN_BITS, KEPT
from sltt_jax.block_rule import (
    Aux,
    BlockRule,
    Plan,
    Rule,
    StepLoss,
    block_forward,
    block_gradient,
    check_target,
    first_state,
    forward_of,
    scan_targets,
)
from sltt_jax.blocks import (
    check_at_least_one,
    check_at_most_T,
    first_step,
    time_steps,
)
from sltt_jax.spelling import parse
from sltt_jax.traces import with_traces, zero_traces

__all__ = [
    "K_STEP_SCOPE",
    "Aux",
    "BlockRule",
    "Plan",
    "Rule",
    "StepLoss",
    "bptt",
    "ottt",
    "parse_rule",
    "sltt",
    "sltt_k",
    "tbptt",
]

# Names the branch that SLTT-K takes at k of its T steps, so that costs can be counted from the jaxpr.
K_STEP_SCOPE = "sltt_k_step"


@dataclasses.dataclass(frozen=True)
class bptt(Rule):
    """Backpropagation through time: the exact (surrogate) gradient. Memory grows with T.

        grads = d/dtheta 1/T sum_t l[t]                 l[t] sees theta through s[t-1], s[t-2], ..., s[0] too

    Attributes:
      chunk: time steps that go through the network together, layer by layer; 1..T.
      remat: keep only the states between blocks and compute the rest again in the backward pass.
      bits: keep the states between blocks and all spikes, each as one bit, and compute the rest again, each
        layer from the spikes of the layer before: best at `chunk=T`, or half of it where the first layer
        alone takes most of the memory. Of cells of this library with a surrogate of
        `sltt_jax.surrogate`; what other cells put out is kept as it is.
    """

    chunk: int = 1
    remat: bool = False
    bits: bool = False

    def __post_init__(self):
        check_at_least_one("chunk", self.chunk)
        if self.remat and self.bits:
            raise ValueError("remat keeps nothing of a block and bits its spikes: choose one of them")

    def value_and_grad(self, apply, step_loss):
        forward = forward_of(apply, step_loss, temporal_gradient=IN_BITS if self.bits else True)

        def f(params, state, inputs, target, key=None):
            del key
            T = time_steps(inputs)
            check_at_most_T("chunk", self.chunk, T)
            state, outputs = first_state(apply, params, state, inputs)
            check_target(target, outputs, T)

            def loss(sums):
                # Cast within the step, so that the gradients of the steps are summed in the type of `sums`.
                def step(carry, block):
                    xs, target = block
                    cast = jax.tree.map(lambda p, like: _cast(p, jnp.result_type(like)), sums, params)
                    return forward(cast, target, carry[0], carry[1], xs)

                if self.remat or self.bits:
                    step = jax.checkpoint(step, policy=KEPT if self.bits else None)
                (end, total), losses = scan_targets(step, (state, outputs), inputs, target, self.chunk)
                return losses.sum(), Aux(losses, total, end)

            wide = lambda p: jnp.promote_types(jnp.result_type(p), jnp.float32)
            sums = jax.tree.map(lambda p: _cast(p, wide(p)), params)
            grads, aux = jax.grad(loss, has_aux=True)(sums)
            # Divided at the end, as in the other rules: half precision would round 1/T at every step.
            return (aux.losses.mean(), aux), jax.tree.map(lambda g: g / T, grads)

        return f


def _cast(p, dtype):
    # None where nothing is to do: it would make a strong type of the weak one that a Python number has.
    return p if jnp.result_type(p) == dtype else jnp.asarray(p, dtype)


@dataclasses.dataclass(frozen=True)
class tbptt(BlockRule):
    """Truncated backpropagation through time: the temporal gradient is cut every `window` steps.

        grads = d/dtheta 1/T sum_t l[t]                 with stop(v[t]) for t = window, 2 window, ...

    `tbptt(1)` is SLTT, `tbptt(T)` is BPTT. The steps of a window go through the network together, layer by
    layer. Memory grows with `window`, not with T.

    Attributes:
      window: steps between two cuts, 1..T; the last window is shorter where it does not divide T.
    """

    window: int

    def __post_init__(self):
        check_at_least_one("window", self.window)

    @property
    def block_steps(self):
        return self.window

    def plan(self, T, key=None):
        check_at_most_T("window", self.window, T)
        return Plan(None, 1 / T)

    def block(self, apply, step_loss):
        return block_gradient(apply, step_loss, temporal_gradient=True)


class _Chunked(BlockRule):
    """Rule whose block is a `chunk` and whose steps all have a backward pass."""

    chunk: int

    @property
    def block_steps(self):
        return self.chunk

    def plan(self, T, key=None):
        check_at_most_T("chunk", self.chunk, T)
        return Plan(None, 1 / T)


@dataclasses.dataclass(frozen=True)
class sltt(_Chunked):
    """Spatial Learning Through Time (Meng et al. 2023, section 4): BPTT without its temporal part.

        grads = d/dtheta 1/T sum_t l[t]                 with stop(v[t]) for every t

    The gradient of every step is computed at that step and added up, so memory does not grow with T.

    Attributes:
      chunk: time steps that go through the network together, 1..T. The gradient is the same for every chunk;
        a longer one is a larger batch to the convolutions and matrix products, and takes as much more memory.
    """

    chunk: int = 1

    def __post_init__(self):
        check_at_least_one("chunk", self.chunk)

    def block(self, apply, step_loss):
        return block_gradient(apply, step_loss, temporal_gradient=False)


@dataclasses.dataclass(frozen=True)
class sltt_k(BlockRule):
    """SLTT-K (Meng et al. 2023, section 4): backward at only k of the T steps, forward at all.

        grads = d/dtheta 1/T sum of l[t] over the k steps           with stop(v[t]) for every t

    One draw of k distinct steps serves the whole batch; give every device the same key. Under `vmap` over
    keys both branches run at every step, and nothing is saved.

    Attributes:
      k: steps with a backward pass, 1..T.
      draw: "uniform" (the paper: at random without replacement, from `key`), "first", "last", "strided" (the
        middles of k equal parts of time), or the steps themselves, a tuple of k different numbers in 0..T-1.
      scale: "paper" divides the sum of the k gradients by T, so that its expectation is k/T times SLTT's;
        "unbiased" divides it by k.
    """

    k: int
    draw: str | tuple[int, ...] = "uniform"
    scale: str = "paper"

    def __post_init__(self):
        check_at_least_one("k", self.k)
        if self.scale not in ("paper", "unbiased"):
            raise ValueError(f'scale must be "paper" or "unbiased", got {self.scale!r}')
        if isinstance(self.draw, tuple):
            if not all(isinstance(t, Integral) for t in self.draw):
                raise ValueError(f"draw must name steps by whole numbers, got {self.draw}")
            if len(set(self.draw)) != self.k or len(self.draw) != self.k:
                raise ValueError(f"draw must name k={self.k} different steps, got {self.draw}")
        elif self.draw not in ("uniform", "first", "last", "strided"):
            raise ValueError(
                f'draw must be "uniform", "first", "last", "strided" or a tuple of steps, got {self.draw!r}'
            )

    def selected(self, T: int, key: jax.Array | None = None) -> jax.Array:
        """Steps that get a backward pass, as a mask of all T, `[T]` bool.

        Raises:
          ValueError: k or a step of `draw` is beyond T, or `draw="uniform"` has no key.
        """
        check_at_most_T("k", self.k, T)
        if self.draw == "uniform":
            if key is None:
                raise ValueError('sltt_k with draw="uniform" needs a key')
            return jax.random.permutation(key, jnp.arange(T) < self.k)
        if self.draw == "first":
            steps: Sequence[int] = range(self.k)
        elif self.draw == "last":
            steps = range(T - self.k, T)
        elif self.draw == "strided":
            steps = [(2 * i + 1) * T // (2 * self.k) for i in range(self.k)]
        else:
            steps = [int(t) for t in self.draw]
            if not all(0 <= t < T for t in steps):
                raise ValueError(f"the steps of draw must be in 0..{T - 1}, got {self.draw}")
        return jnp.zeros(T, bool).at[jnp.asarray(steps)].set(True)

    def backward_share(self, T):
        return self.k / T

    @property
    def block_steps(self):
        return 1

    def plan(self, T, key=None):
        return Plan(self.selected(T, key), 1 / (T if self.scale == "paper" else self.k))

    def block(self, apply, step_loss):
        gradient = block_gradient(apply, step_loss, temporal_gradient=False)
        forward = block_forward(apply, step_loss)

        def block(params, target, carry, xs, backward):
            with jax.named_scope(K_STEP_SCOPE):
                return jax.lax.cond(backward[0], gradient, forward, params, target, carry, xs)

        return block


@dataclasses.dataclass(frozen=True)
class ottt(_Chunked):
    """Online Training Through Time (Xiao et al. 2022, section 4): SLTT with presynaptic traces.

        grads = 1/T sum_t e[t] a[t]                     a[t] = decay a[t-1] + x[t]

    where `x[t]` is what enters the weights at step t and `e[t]` the gradient of `l[t]` to what leaves them,
    with stop(v[t]) for every t: the error signal of SLTT times the trace of the input in place of the input.
    With `decay=0` it is SLTT. What has no presynaptic side (biases, scales, time constants) has the gradient
    of SLTT. Memory is flat in T, and holds a trace for every input of a layer beside what SLTT keeps.

    The network must keep traces: Linen networks of `functional.applier` do, others by `sltt_jax.synapse`. One
    that has a parameter of two or more axes learn without a trace is refused, with the parameter's name.

    Attributes:
      decay: what a trace keeps in a step, 0..1; the leak `1 - 1/tau` of the neurons in the paper.
      chunk: time steps that go through the network together, 1..T; the gradient is the same for every chunk.
    """

    decay: float
    chunk: int = 1

    def __post_init__(self):
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay must be in 0..1, got {self.decay}")
        check_at_least_one("chunk", self.chunk)

    def block(self, apply, step_loss):
        return block_gradient(with_traces(apply, self.decay), step_loss, temporal_gradient=False)

    def start(self, apply, params, state, inputs):
        zeros = zero_traces(apply, self.decay, params, state, first_step(inputs))
        return super().start(with_traces(apply, self.decay), params, (state, zeros), inputs)

    def finish(self, carry, losses, scale):
        state, _ = carry.state
        return super().finish(carry._replace(state=state), losses, scale)


def parse_rule(text: str) -> Rule:
    """Reads a rule as `str` spells it: "sltt", "sltt(6)", "sltt_k(2, draw=first)", "bptt(remat=True)".

    Raises:
      ValueError: there is no such rule, or it cannot have these settings.
    """
    return parse(text, (bptt, tbptt, sltt, sltt_k, ottt))
