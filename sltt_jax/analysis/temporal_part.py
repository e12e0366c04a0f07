"""Temporal part of BPTT's gradient, which SLTT leaves out: its size, and how far it reaches.

Error signals go back in time from membrane to membrane. In a layer without lateral weights every neuron has
only its own past, so the Jacobian of one step is a diagonal matrix, with the entries

    du[t+1]/du[t] = lambda (1 - v_threshold surrogate'(u[t] - v_threshold))      soft reset
    du[t+1]/du[t] = lambda                                                       soft reset, detach_reset

where lambda = 1 - 1/tau (Meng et al. 2023, equation 11, has this for the rectangle surrogate). The spectral
norm of the product of such matrices over a lag of k steps is the largest entry of the product, and at most
lambda^k as long as no factor is larger than lambda.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sltt_jax.blocks import check_at_least_one, check_at_most_T
from sltt_jax.neurons import Neuron, check_tau, lif_step


class LagNorms(NamedTuple):
    """Rest of an error signal that goes back k steps through the membranes, k = 1..T-1; `[T-1]` each.

    Attributes:
      spectral: the largest `|du[t+k]/du[t]|` over steps, samples and neurons: the spectral norm.
      mean: the mean of it.
    """

    spectral: jax.Array
    mean: jax.Array


def temporal_factors(v: jax.Array, xs: jax.Array, neuron: Neuron) -> jax.Array:
    """Computes the diagonal of `du[t+1]/du[t]` of a layer, for every step, sample and neuron.

    It is taken from the derivative of `lif_step` itself, so it holds for every reset, detached or not.

    Args:
      v: membrane before the first step, `[B, ...]`.
      xs: input currents, `[T, B, ...]`.
      neuron: the parameters of the layer.

    Returns:
      `[T, B, ...]`; entry t is from step t to t + 1.
    """

    def step(v, x):
        return jax.jvp(lambda v: lif_step(v, x, neuron)[0], (v,), (jnp.ones_like(v),))

    return jax.lax.scan(step, v, xs)[1]


def lag_norms(factors: jax.Array) -> LagNorms:
    """Norms of the products of `temporal_factors` over 1..T-1 steps.

    Args:
      factors: `[T, B, ...]`; the last leads out of the T steps and is not used.

    Raises:
      ValueError: there are fewer than two steps.
    """
    T = len(factors)
    if T < 2:
        raise ValueError(f"temporal gradients need at least two steps, got T={T}")
    product, norms = jnp.ones_like(factors), []
    for k in range(1, T):
        product = product[: T - k] * factors[k - 1 : T - 1]
        size = jnp.abs(product)
        norms.append((size.max(), size.mean()))
    return LagNorms(*(jnp.stack(n) for n in zip(*norms, strict=True)))


def horizon(tau: float, epsilon: float = 1e-3) -> float:
    """Gradient horizon: steps after which `epsilon` of a membrane is left, log(epsilon) / log(1 - 1/tau).

    0 for tau = 1, which keeps nothing, and `inf` for tau = inf.

    Raises:
      ValueError: `tau` is below 1, or `epsilon` is not between 0 and 1.
    """
    check_tau("tau", tau)
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon must be between 0 and 1, got {epsilon}")
    if tau == 1:
        return 0.0
    return math.inf if tau == math.inf else math.log(epsilon) / math.log1p(-1 / tau)


def cut_share(tau: float, T: int, window: int = 1) -> float:
    """Share of BPTT's gradient that `tbptt(window)` cuts, `sltt()` by default, if nothing weakened it.

    Every pair of steps s <= t is a path of the error of step t back to step s, of weight lambda^(t-s). This
    is the weight of the paths that cross a border between windows over that of all. Resets make it less, and
    error signals of different signs make it more or less: `agreement` measures what it really is.

    Args:
      tau: membrane time constant in steps, >= 1.
      T: time steps.
      window: steps between two cuts, 1..T.

    Raises:
      ValueError: a number is outside its range.
    """
    check_tau("tau", tau)
    for name, value in (("T", T), ("window", window)):
        check_at_least_one(name, value)
    check_at_most_T("window", window, T)
    keep = 1 - 1 / tau
    paths = lambda steps: sum((steps - k) * keep**k for k in range(steps))
    windows, rest = divmod(T, window)
    return 1 - (windows * paths(window) + paths(rest)) / paths(T)


def advice(tau: float, T: int) -> str | None:
    """Warns in plain words where SLTT may cut more than half of the gradient; else None.

    It names the shortest window of `tbptt` that does not.

    Args:
      tau: the largest membrane time constant of the network, in steps.
      T: time steps.

    Raises:
      ValueError: a number is outside its range.
    """
    cut = cut_share(tau, T)
    if not cut > 0.5:
        return None
    # There always is one: windows of half of T cut less than half, even without a leak.
    window = next(w for w in range(2, T) if cut_share(tau, T, w) <= 0.5)
    steps = horizon(tau)
    reach = "never fades" if steps == math.inf else f"takes {steps:.0f} steps to fade to 0.1 %"
    percent = lambda share: f"{100 * share:.0f} %"
    return (
        f"tau={tau:g}: a membrane {reach}, and there are T={T}. SLTT may cut {percent(cut)} of the gradient; "
        f"consider tbptt(window={window}), which may cut {percent(cut_share(tau, T, window))}, or bptt()."
    )
