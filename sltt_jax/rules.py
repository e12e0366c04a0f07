"""Training rules: drop-in replacements of `jax.value_and_grad` for networks that run over time.

A rule knows nothing of neurons or layers. It takes a network as a pure function of a *block* of C >= 1
consecutive time steps,

    outputs, state = apply(params, state, xs, temporal_gradient=...)        # xs, outputs: [C, B, ...]

where `state` is a pytree of all that flows from step to step, and an instantaneous loss
`step_loss(outputs[t], target) -> scalar`, which is averaged over the T steps:

    (loss, aux), grads = sltt().value_and_grad(apply, step_loss)(params, state, inputs, target, key)

`apply` must cut the gradient that enters through the state (`lax.stop_gradient` on the membranes of the step
before) when it is called with `temporal_gradient=False`, also between the steps of one block.

The inputs are a pytree of arrays `[T, B, ...]`, or `Repeat(x, T)` for an input that is the same at every
step.
"""

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sltt_jax.blocks import (
    Apply,
    PyTree,
    check_at_least_one,
    check_at_most_T,
    first_step,
    scan_blocks,
    time_steps,
)

StepLoss = Callable[[Any, Any], jax.Array]
ValueAndGrad = Callable[..., tuple[tuple[jax.Array, "Aux"], PyTree]]

# Names the branch that SLTT-K takes at k of its T steps, so that costs can be counted from the jaxpr.
K_STEP_SCOPE = "sltt_k_step"


class Aux(NamedTuple):
    """What every rule returns beside the loss and the gradient.

    Attributes:
      losses: the instantaneous loss of every step, `[T]`; `loss` is its mean, also under SLTT-K.
      outputs: the sum of the outputs over time, `[B, ...]`; evaluation takes its argmax.
      state: the state after the last step.
    """

    losses: jax.Array
    outputs: PyTree
    state: PyTree


def _add_steps(total, outputs):
    """Adds the steps of a block one after the other, so that every block size rounds alike."""
    return jax.lax.scan(lambda a, o: (jax.tree.map(jnp.add, a, o), None), total, outputs, unroll=16)[0]


def _zero_total(apply, params, state, inputs):
    """Zeros like the outputs of one step."""
    one = first_step(inputs)
    block = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *jnp.shape(x)), x.dtype), one)
    outputs, _ = jax.eval_shape(lambda *a: apply(*a, temporal_gradient=False), params, state, block)
    return jax.tree.map(lambda o: jnp.zeros(o.shape[1:], o.dtype), outputs)


def _forward(apply, step_loss, target, temporal_gradient):
    """One block forward: `(params, (state, total), xs) -> (state, total), losses [C]`."""

    def forward(params, carry, xs):
        state, total = carry
        outputs, state = apply(params, state, xs, temporal_gradient=temporal_gradient)
        losses = jax.vmap(step_loss, (0, None))(outputs, target)
        if losses.ndim != 1:
            raise ValueError(f"step_loss must return a scalar for one step, got shape {losses.shape[1:]}")
        return (state, _add_steps(total, outputs)), losses

    return forward


def _block_gradient(apply, step_loss, temporal_gradient):
    """One block forward and backward, its gradient added to those before.

    The state that enters is a constant, so whatever this backward pass keeps is dead at the end of the block.
    """

    def block(params, target, carry, xs):
        *start, grads = carry

        def loss(params):
            end, losses = _forward(apply, step_loss, target, temporal_gradient)(params, start, xs)
            return losses.sum(), (end, losses)

        g, (end, losses) = jax.grad(loss, has_aux=True)(params)
        return (*end, jax.tree.map(jnp.add, grads, g)), losses

    return block


def _start(apply, params, state, inputs):
    """The carry of a loop over `_block_gradient`: state, sum of outputs, sum of gradients."""
    return state, _zero_total(apply, params, state, inputs), jax.tree.map(jnp.zeros_like, params)


def _finish(carry, losses, scale):
    state, total, grads = carry
    grads = jax.tree.map(lambda g: g * jnp.asarray(scale, g.dtype), grads)
    return (losses.mean(), Aux(losses, total, state)), grads


@dataclasses.dataclass(frozen=True)
class bptt:
    """Backpropagation through time: the exact (surrogate) gradient. Memory grows with T.

    Attributes:
      chunk: time steps that go through the network together, layer by layer; 1..T.
      remat: keep only the states between blocks and compute the rest again in the backward pass.
    """

    chunk: int = 1
    remat: bool = False

    def __post_init__(self):
        check_at_least_one("chunk", self.chunk)

    def value_and_grad(self, apply: Apply, step_loss: StepLoss) -> ValueAndGrad:
        """See the module's docstring; `key` is not used."""

        def f(params, state, inputs, target, key=None):
            del key
            T = time_steps(inputs)
            check_at_most_T("chunk", self.chunk, T)
            forward = _forward(apply, step_loss, target, temporal_gradient=True)

            def loss(params):
                step = lambda carry, xs: forward(params, carry, xs[0])
                step = jax.checkpoint(step) if self.remat else step
                start = state, _zero_total(apply, params, state, inputs)
                (end, total), losses = scan_blocks(step, start, inputs, self.chunk)
                return losses.mean(), Aux(losses, total, end)

            return jax.value_and_grad(loss, has_aux=True)(params)

        return f


class _Blockwise(abc.ABC):
    """The loop of every rule whose gradients do not reach across the borders of blocks."""

    @property
    @abc.abstractmethod
    def _size(self) -> int:
        """Time steps of a block."""

    @abc.abstractmethod
    def _plan(self, T: int, key: jax.Array | None) -> tuple[tuple[jax.Array, ...], float]:
        """Checks the rule against T; returns arrays `[T]` for the blocks and the scale of the gradient."""

    @abc.abstractmethod
    def _block(self, apply: Apply, step_loss: StepLoss) -> Callable:
        """Returns `block(params, target, carry, xs, *arrays) -> carry, losses [C]`."""

    def value_and_grad(self, apply: Apply, step_loss: StepLoss) -> ValueAndGrad:
        """A function `(params, state, inputs, target, key=None) -> ((loss, Aux), grads)`; see the module.

        `key` draws the steps of `sltt_k`; the other rules do not use it.
        """
        block = self._block(apply, step_loss)

        def f(params, state, inputs, target, key=None):
            per_step, scale = self._plan(time_steps(inputs), key)
            carry, losses = scan_blocks(
                lambda carry, xs: block(params, target, carry, *xs),
                _start(apply, params, state, inputs),
                inputs,
                self._size,
                *per_step,
            )
            return _finish(carry, losses, scale)

        return f


@dataclasses.dataclass(frozen=True)
class tbptt(_Blockwise):
    """Truncated backpropagation through time: the temporal gradient is cut every `window` steps.

    `tbptt(1)` is SLTT, `tbptt(T)` is BPTT. The steps of a window go through the network together, layer by
    layer. Memory grows with `window`, not with T.

    Attributes:
      window: steps between two cuts, 1..T; the last window is shorter where it does not divide T.
    """

    window: int

    def __post_init__(self):
        check_at_least_one("window", self.window)

    @property
    def _size(self):
        return self.window

    def _plan(self, T, key):
        check_at_most_T("window", self.window, T)
        return (), 1 / T

    def _block(self, apply, step_loss):
        return _block_gradient(apply, step_loss, temporal_gradient=True)


@dataclasses.dataclass(frozen=True)
class sltt(_Blockwise):
    """Spatial Learning Through Time (Meng et al. 2023): BPTT without its temporal part.

    The gradient of every step is computed at that step and added up, so memory does not grow with T.

    Attributes:
      chunk: time steps that go through the network together, 1..T. The gradient is the same for every chunk;
        a longer one is a larger batch to the convolutions and matrix products, and takes as much more memory.
    """

    chunk: int = 1

    def __post_init__(self):
        check_at_least_one("chunk", self.chunk)

    @property
    def _size(self):
        return self.chunk

    def _plan(self, T, key):
        check_at_most_T("chunk", self.chunk, T)
        return (), 1 / T

    def _block(self, apply, step_loss):
        return _block_gradient(apply, step_loss, temporal_gradient=False)


@dataclasses.dataclass(frozen=True)
class sltt_k(_Blockwise):
    """SLTT-K (Meng et al. 2023): the backward pass at only k of the T steps, the forward pass at all.

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
            if len(set(self.draw)) != self.k or len(self.draw) != self.k:
                raise ValueError(f"draw must name k={self.k} different steps, got {self.draw}")
        elif self.draw not in ("uniform", "first", "last", "strided"):
            raise ValueError(
                f'draw must be "uniform", "first", "last", "strided" or a tuple of steps, got {self.draw!r}'
            )

    def selected(self, T: int, key: jax.Array | None = None) -> jax.Array:
        """Which of T steps get a backward pass, `[T]` bool.

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

    @property
    def _size(self):
        return 1

    def _plan(self, T, key):
        return (self.selected(T, key),), 1 / (T if self.scale == "paper" else self.k)

    def _block(self, apply, step_loss):
        backward = _block_gradient(apply, step_loss, temporal_gradient=False)

        def forward_only(params, target, carry, xs):
            *start, grads = carry
            end, losses = _forward(apply, step_loss, target, temporal_gradient=False)(params, start, xs)
            return (*end, grads), losses

        def block(params, target, carry, xs, selected):
            with jax.named_scope(K_STEP_SCOPE):
                return jax.lax.cond(selected[0], backward, forward_only, params, target, carry, xs)

        return block


Rule = bptt | tbptt | sltt | sltt_k
RULES = {rule.__name__: rule for rule in (bptt, tbptt, sltt, sltt_k)}
