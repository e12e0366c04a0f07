"""Leaky integrate-and-fire neurons as pure functions of an explicit membrane.

`lif_step` is one time step, `lif` a block of them, time first:

    v, spikes = lif(v, xs, neuron, temporal_gradient=...)        # v: [B, ...], xs and spikes: [C, B, ...]

Both cut the gradient that flows through the membrane from step to step when they are called with
`temporal_gradient=False`; the forward pass is the same. Other cells are in `sltt_jax.cells`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core

from sltt_jax.cell_blocks import over_time
from sltt_jax.surrogate import Surrogate, triangle

_LEAVES = "tau", "v_threshold", "v_reset"
_STATIC = "decay_input", "detach_reset", "surrogate"


def _concrete(value):
    """Returns a number or array to be checked; None for what has no value yet, as under a transformation."""
    known = isinstance(value, int | float | np.ndarray | jax.Array) and not isinstance(value, core.Tracer)
    return np.asarray(value) if known else None


def check_tau(name: str, tau: float | jax.Array):
    """Raises a ValueError if a time constant, or an entry that is not traced, is below 1 time step."""
    known = _concrete(tau)
    if known is not None and not (known >= 1).all():
        raise ValueError(f"{name} must be >= 1 (in time steps), got {tau}")


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
      ValueError: a number, or an entry of an array that is not traced, is outside its range.
    """

    tau: float | jax.Array = 2.0
    v_threshold: float | jax.Array = 1.0
    v_reset: float | jax.Array | None = None
    decay_input: bool = False
    detach_reset: bool = False
    surrogate: Callable[[jax.Array], jax.Array] = dataclasses.field(default=triangle())

    def __post_init__(self):
        for name in _LEAVES:
            value = getattr(self, name)
            if isinstance(value, np.generic):  # a Python number leaves the type of a membrane as it is
                object.__setattr__(self, name, value.item())
        tau, v_threshold, v_reset = (_concrete(getattr(self, name)) for name in _LEAVES)
        check_tau("tau", self.tau)
        if v_threshold is not None and not (v_threshold > 0).all():
            raise ValueError(f"v_threshold must be > 0, got {self.v_threshold}")
        if v_reset is not None and not np.isfinite(v_reset).all():
            raise ValueError(f"v_reset must be finite, got {self.v_reset}")
        if v_reset is not None and v_threshold is not None and not (v_reset < v_threshold).all():
            raise ValueError(f"v_reset must be below v_threshold={self.v_threshold}, got {self.v_reset}")
        if self.decay_input and tau is not None and np.isinf(tau).any():
            raise ValueError("decay_input=True with tau=inf would multiply every input by 0")

    @property
    def v_rest(self) -> float | jax.Array:
        """Membrane before the first step: `v_reset`, or 0 with a soft reset."""
        return 0.0 if self.v_reset is None else self.v_reset


def _flatten(neuron):
    leaves = [(jax.tree_util.GetAttrKey(name), getattr(neuron, name)) for name in _LEAVES]
    return leaves, tuple(getattr(neuron, name) for name in _STATIC)


def _unflatten(static, leaves):
    """Rebuilds a `Neuron` around whatever leaves a transformation has made: masks, axes, tracers."""
    neuron = object.__new__(Neuron)
    for name, value in zip((*_LEAVES, *_STATIC), (*leaves, *static), strict=True):
        object.__setattr__(neuron, name, value)
    return neuron


jax.tree_util.register_pytree_with_keys(Neuron, _flatten, _unflatten)


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
        return u - _subtracted(neuron.v_threshold) * s
    return (1 - s) * u + s * neuron.v_reset


def _subtracted(v_threshold):
    """Returns what a spike subtracts; 0 for an infinite threshold, never reached, where inf * 0 is NaN."""
    if isinstance(v_threshold, int | float):
        return 0.0 if v_threshold == math.inf else v_threshold
    return jnp.where(jnp.isinf(v_threshold), 0, v_threshold)


def check_current(v: jax.Array, x: jax.Array):
    """Raises a ValueError unless the membrane `v` can take the input current `x` of one step."""
    if isinstance(x, tuple):
        raise ValueError(
            f"the input current must be one array, got a tuple of {len(x)}: steps apart make one by jnp.stack"
        )
    if not hasattr(v, "shape"):
        raise ValueError(f"a membrane must be an array like the input of one step {x.shape}, got {v!r}")
    if v.shape != x.shape:
        raise ValueError(f"membrane {v.shape} and input of one step {x.shape} must have the same shape")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"the input current must be floating point, got {x.dtype}")
    if jnp.promote_types(v.dtype, x.dtype) != v.dtype:
        raise ValueError(f"a membrane of {v.dtype} cannot hold currents of {x.dtype}; start it as {x.dtype}")


def lif_step(
    v: jax.Array, x: jax.Array, neuron: Neuron, *, temporal_gradient: bool = True
) -> tuple[jax.Array, jax.Array]:
    """Advances leaky integrate-and-fire neurons by one step (Meng et al. 2023, section 3).

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
      ValueError: `v` and `x` differ in shape, `x` is not floating point or does not fit into the type of `v`,
        or `temporal_gradient` is traced.
    """
    check_current(v, x)
    if not temporal_gradient:
        v = jax.lax.stop_gradient(v)
    u = _charge(v, x, neuron)
    s = _fire(u, neuron)
    return _reset(u, s, neuron), s


def spikes_of(neuron: Neuron, *_: Any, **__: Any) -> bool:
    """Says whether a cell with these parameters puts out 0 or 1, which may be kept as bits."""
    return isinstance(neuron.surrogate, Surrogate)


lif_step.spikes = spikes_of  # pyright: ignore[reportFunctionMemberAccess]

lif = over_time(lif_step)
