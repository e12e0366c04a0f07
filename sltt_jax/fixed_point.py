"""Leaky integrate-and-fire neurons in integers, as neuromorphic hardware has them.

The membrane is an int32, the leak a shift, the threshold an integer. One unit of it is the scale of the
weights times that of the inputs:

    weights, scales, _ = quantise(params)                          w = weights * scales
    neuron = integer_neuron(Neuron(tau=4.0, v_reset=0.0), scales["w"])
    v, spikes = integer_lif(v, xs @ weights["w"].astype(xs.dtype), neuron)        # all of them int32

`membrane_range` says how many bits a membrane needs, before one overflows.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from sltt_jax.cell_blocks import over_time
from sltt_jax.neurons import Neuron

MOST_SHIFT = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IntegerNeuron:
    """Parameters of a layer of LIF neurons in integers, which a spike resets to 0.

    Attributes:
      threshold: a neuron spikes where its membrane reaches it: an integer >= 1, or int32 that broadcasts
        against the membrane (one a channel where weights have a scale for each).
      shift: n, 0..16: the membrane loses its 2^n-th part in a step, as with `tau = 2^n`.

    Raises:
      ValueError: a number, or an entry that is not traced, is outside its range.
    """

    threshold: int | np.ndarray | jax.Array
    shift: int = dataclasses.field(metadata={"static": True})

    def __post_init__(self):
        if not 0 <= self.shift <= MOST_SHIFT:
            raise ValueError(f"shift must be in 0..{MOST_SHIFT}, got {self.shift}")
        if isinstance(self.threshold, int | np.ndarray) and not np.all(np.asarray(self.threshold) >= 1):
            raise ValueError(f"threshold must be an integer >= 1, got {self.threshold}")


def integer_neuron(neuron: Neuron, scale: float | np.ndarray | jax.Array) -> IntegerNeuron:
    """Makes the integer form of a layer's neurons.

    The threshold is the least integer that reaches the other: `U * scale >= v_threshold` exactly where
    `U >= ceil(v_threshold / scale)`.

    Args:
      neuron: with `tau` a power of two, a hard reset to 0, and no `decay_input`.
      scale: of a unit of the membrane: that of the weights times that of their inputs, > 0; a number, or one
        for every channel, in any shape that broadcasts against the membrane.

    Raises:
      ValueError: the neuron has no such form, and what would give it one.
    """
    mantissa, exponent = np.frexp(np.asarray(neuron.tau, np.float64))
    if mantissa.ndim or mantissa != 0.5 or not 0 <= exponent - 1 <= MOST_SHIFT:
        raise ValueError(
            f"a leak by a shift needs tau = 1, 2, 4, ... 2^{MOST_SHIFT}, the same for all neurons, got "
            f"{neuron.tau}"
        )
    if neuron.v_reset is None or np.any(np.asarray(neuron.v_reset) != 0):
        raise ValueError(f"neurons in integers are reset to 0: v_reset must be 0.0, got {neuron.v_reset}")
    if neuron.decay_input:
        raise ValueError("neurons in integers take their input whole: put 1/tau of decay_input into weights")
    unit = np.asarray(scale, np.float64)
    if not (np.isfinite(unit) & (unit > 0)).all():
        raise ValueError(f"scale must be > 0, got {scale}")
    threshold = np.ceil(np.asarray(neuron.v_threshold, np.float64) / unit)
    if not (threshold < 2**31).all():
        raise ValueError(f"v_threshold is {threshold.max():.3g} units of the membrane, more than int32 holds")
    return IntegerNeuron(threshold.astype(np.int32), int(exponent) - 1)


def integer_lif_step(v: jax.Array, x: jax.Array, neuron: IntegerNeuron) -> tuple[jax.Array, jax.Array]:
    """Advances leaky integrate-and-fire neurons by one step, in integers alone.

        u[t] = v[t-1] - (v[t-1] >> n) + x[t]
        s[t] = 1 where u[t] >= threshold
        v[t] = (1 - s[t]) u[t]

    `lif_step` with `tau = 2^n` and `v_reset=0`, but that the shift rounds what leaks towards minus infinity:
    a positive membrane below 2^n stays as it is.

    Args:
      v: membrane after the step before, int32, `[B, ...]`.
      x: input current of this step, int32, `[B, ...]`.
      neuron: the parameters of the layer.

    Returns:
      `(v, s)`: the membrane after reset, and the spikes (0 or 1), both int32. What does not fit into 32 bits
      wraps around; `membrane_range` tells.

    Raises:
      ValueError: `v` or `x` is not int32, or they differ in shape.
    """
    for name, value in (("membrane", v), ("input current", x)):
        if value.dtype != jnp.int32:
            raise ValueError(f"the {name} must be int32, got {value.dtype}")
    if v.shape != x.shape:
        raise ValueError(f"membrane {v.shape} and input of one step {x.shape} must have the same shape")
    u = v - (v >> neuron.shift) + x
    threshold = jax.lax.broadcast_to_rank(jnp.asarray(neuron.threshold, jnp.int32), u.ndim)
    s = (u >= threshold).astype(jnp.int32)
    return (1 - s) * u, s


integer_lif = over_time(integer_lif_step)


def membrane_range(neuron: IntegerNeuron, largest: int) -> tuple[int, int]:
    """Bounds the membranes of neurons that start at 0, at any step and before the reset.

        -(2^n (largest - 1) + 1) <= u[t] <= m - (m >> n) + largest            with m = max threshold - 1

    An inhibited membrane comes to rest where a step's leak is its input; one at the threshold is reset.

    Args:
      neuron: the parameters of the layer.
      largest: bound on the absolute value of a step's current, >= 1: the sum of a neuron's absolute weights
        times the largest input, and its bias, of the neuron where it is largest.

    Returns:
      `(lowest, highest)`; `membrane_bits` says how many bits hold them.
    """
    most = int(np.max(neuron.threshold)) - 1
    return -(((largest - 1) << neuron.shift) + 1), most - (most >> neuron.shift) + largest


def membrane_bits(neuron: IntegerNeuron, largest: int) -> int:
    """Counts the bits, with the sign, of a membrane that never overflows; arguments as of `membrane_range`.

    It is to be at most 32 for `integer_lif`.
    """
    lowest, highest = membrane_range(neuron, largest)
    return 1 + max((-lowest - 1).bit_length(), highest.bit_length())
