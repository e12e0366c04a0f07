"""Leaky integrate-and-fire neurons as pure functions of an explicit membrane.

`lif_step` is one time step, `lif` a block of them, time first. Both cut the gradient that flows through the
membrane from step to step when they are called with `temporal_gradient=False`; the forward pass is the same.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from sltt_jax.cpu import scan
from sltt_jax.surrogate import triangle


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Neuron:
    """Parameters of a layer of LIF neurons; the defaults are those of the SLTT authors' code.

    A pytree whose leaves are `tau`, `v_threshold` and `v_reset`: each is a number, or an array that
    broadcasts against the membrane (one value a channel, say), possibly learned.

    Attributes:
      tau: membrane time constant in steps, >= 1; the membrane keeps `1 - 1/tau` of itself in a step.
        `math.inf` makes integrate-and-fire neurons without a leak. Every recipe of the paper uses 1.1.
      v_threshold: a neuron spikes where the membrane reaches it, > 0.
      v_reset: None for a soft reset (the threshold is subtracted), else the value that a hard reset sets and
        towards which the membrane leaks, < v_threshold.
      decay_input: multiply the input by `1/tau`.
      detach_reset: no gradient through the spike of the reset.
      surrogate: the spike function of `u - v_threshold`.

    Raises:
      ValueError: a number is outside its range.
    """

    tau: float | jax.Array = 2.0
    v_threshold: float | jax.Array = 1.0
    v_reset: float | jax.Array | None = None
    decay_input: bool = dataclasses.field(default=False, metadata={"static": True})
    detach_reset: bool = dataclasses.field(default=False, metadata={"static": True})
    surrogate: Callable[[jax.Array], jax.Array] = dataclasses.field(
        default=triangle(), metadata={"static": True}
    )

    def __post_init__(self):
        # Only plain numbers are checked: under a transformation the leaves are tracers.
        tau, v_threshold, v_reset = self.tau, self.v_threshold, self.v_reset
        if isinstance(tau, int | float) and not tau >= 1:
            raise ValueError(f"tau must be >= 1 (in time steps), got {tau}")
        if isinstance(v_threshold, int | float) and not v_threshold > 0:
            raise ValueError(f"v_threshold must be > 0, got {v_threshold}")
        if isinstance(v_reset, int | float) and isinstance(v_threshold, int | float):
            if not v_reset < v_threshold:
                raise ValueError(f"v_reset must be below v_threshold={v_threshold}, got {v_reset}")
        if self.decay_input and isinstance(tau, int | float) and tau == math.inf:
            raise ValueError("decay_input=True with tau=inf would multiply every input by 0")

    @property
    def v_rest(self) -> float | jax.Array:
        """Where a membrane starts: `v_reset`, or 0 with a soft reset."""
        return 0.0 if self.v_reset is None else self.v_reset


def _charge(v, x, neuron):
    decay = 1 / neuron.tau
    u = (1 - decay) * v + (decay * x if neuron.decay_input else x)
    return u if neuron.v_reset is None else u + decay * neuron.v_reset


def _fire(u, neuron):
    return neuron.surrogate(u - neuron.v_threshold)


def _reset(u, s, neuron):
    if neuron.detach_reset:
        s = jax.lax.stop_gradient(s)
    if neuron.v_reset is None:
        return u - neuron.v_threshold * s
    return (1 - s) * u + s * neuron.v_reset


def _check(v, x, name):
    if v.shape != x.shape:
        raise ValueError(f"membrane {v.shape} and {name} {x.shape} must have the same shape")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"the input current must be floating point, got {x.dtype}")


def lif_step(
    v: jax.Array, x: jax.Array, neuron: Neuron, *, temporal_gradient: bool = True
) -> tuple[jax.Array, jax.Array]:
    """One step of leaky integrate-and-fire neurons (Meng et al. 2023, section 3).

        u[t] = (1 - 1/tau) v[t-1] + x[t]
        s[t] = H(u[t] - v_threshold)
        v[t] = u[t] - v_threshold s[t]                  soft reset (v_reset=None)
        v[t] = (1 - s[t]) u[t] + s[t] v_reset           hard reset; u[t] gains v_reset/tau

    Args:
      v: membrane after the step before, `[B, ...]`.
      x: input current of this step, `[B, ...]`, same shape as `v`, floating point.
      neuron: the parameters of the layer.
      temporal_gradient: let gradients flow to `v`; SLTT passes False.

    Returns:
      `(v, s)`: the membrane after reset, and the spikes (0 or 1), both `[B, ...]`.

    Raises:
      ValueError: `v` and `x` differ in shape, or `x` is not floating point.
    """
    _check(v, x, "input")
    if not temporal_gradient:
        v = jax.lax.stop_gradient(v)
    u = _charge(v, x, neuron)
    s = _fire(u, neuron)
    return _reset(u, s, neuron), s


def lif(
    v: jax.Array, xs: jax.Array, neuron: Neuron, *, temporal_gradient: bool = True
) -> tuple[jax.Array, jax.Array]:
    """A block of C >= 1 consecutive steps of `lif_step`.

    With `temporal_gradient=False` nothing is differentiated along time, so the loop runs without gradients
    and the spikes are then recomputed from the membranes it visited in one elementwise pass over the block:
    the backward pass holds no loop, only arrays of C*B samples.

    Args:
      v: membrane before the block, `[B, ...]`.
      xs: input currents, time first, `[C, B, ...]`, floating point.
      neuron: the parameters of the layer.
      temporal_gradient: let gradients flow from step to step and to `v`.

    Returns:
      `(v, spikes)`: the membrane after the block `[B, ...]`, and the spikes `[C, B, ...]`. Without temporal
      gradient the membrane is a constant to differentiation.

    Raises:
      ValueError: `v` and `xs[0]` differ in shape, or `xs` is not floating point.
    """
    if xs.ndim == 0 or xs.shape[0] == 0:
        raise ValueError(f"xs must hold at least one time step, got shape {xs.shape}")
    _check(v, xs[0], "input of one step")
    if temporal_gradient:
        return scan(lambda v, x: lif_step(v, x, neuron), v, xs)
    if len(xs) == 1:
        v, s = lif_step(v, xs[0], neuron, temporal_gradient=False)
        return jax.lax.stop_gradient(v), s[None]

    def advance(v, x):
        return lif_step(v, x, constant)[0], v

    constant, v, currents = jax.lax.stop_gradient((neuron, v, xs))
    v, before = scan(advance, v, currents)
    return v, _fire(_charge(before, xs, neuron), neuron)
