"""Cells beside the LIF neuron: a leaky integrator, an adaptive threshold, a synaptic current.

Each is one time step as a pure function, and a block of them made by `over_time`; `recurrent` puts lateral
weights around any. The equations are written with the soft reset; with `Neuron(v_reset=...)` all that spike
have the hard reset of `lif_step`.
"""

import dataclasses

import jax

from sltt_jax.cell_blocks import over_time
from sltt_jax.neurons import Neuron, check_current, check_tau, lif_step, spikes_of


def li_step(
    v: jax.Array, x: jax.Array, tau: float | jax.Array = 2.0, decay_input: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Advances leaky integrators by one step: a readout that does not spike.

        v[t] = (1 - 1/tau) v[t-1] + x[t]

    With `decay_input` it is `x[t]/tau`, which makes the membrane a moving average of its input, as large at
    any `tau`.

    Args:
      v: membrane after the step before, `[B, ...]`.
      x: input current of this step, `[B, ...]`, floating point.
      tau: membrane time constant in steps, >= 1, a number or one for every unit.
      decay_input: multiply the input by `1/tau`.

    Returns:
      `(v, v)`: the membrane, as the state and as the output.

    Raises:
      ValueError: `v` and `x` do not fit each other, or `tau` is outside its range.
    """
    check_current(v, x)
    check_tau("tau", tau)
    v = (1 - 1 / tau) * v + (x / tau if decay_input else x)
    return v, v


def alif_step(
    state: tuple[jax.Array, jax.Array, jax.Array],
    x: jax.Array,
    neuron: Neuron,
    tau_a: float | jax.Array = 100.0,
    beta: float | jax.Array = 1.8,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array]:
    """Advances adaptive LIF neurons by one step: the threshold rises with the neuron's own spikes.

        a[t] = (1 - 1/tau_a) a[t-1] + s[t-1] / tau_a
        theta[t] = v_threshold + beta a[t]
        u[t] = (1 - 1/tau) v[t-1] + x[t]
        s[t] = H(u[t] - theta[t])
        v[t] = u[t] - theta[t] s[t]

    As in Bellec et al. 2018 and Yin et al. 2021, where the decay is `exp(-1/tau)`. `a` is a moving average of
    the spikes, and `beta` the rise of the threshold of a neuron that always fires. Step t moves `a` before it
    uses it, so that `tau_a` has a gradient under SLTT too.

    Args:
      state: `(v, a, s)`, membrane, adaptation and spikes of the step before, `[B, ...]` each; `a` and `s` are
        0 at first.
      x: input current of this step, `[B, ...]`, floating point.
      neuron: the parameters of the layer, but for the adaptation.
      tau_a: time constant of the adaptation in steps, >= 1, a number or one for every unit.
      beta: strength of the adaptation; with 0 it is `lif_step`.

    Returns:
      `((v, a, s), s)`: the new state, and the spikes (0 or 1), `[B, ...]` each.

    Raises:
      ValueError: `v` and `x` do not fit each other, or `tau_a` is outside its range.
    """
    v, a, s = state
    check_tau("tau_a", tau_a)
    a = (1 - 1 / tau_a) * a + s / tau_a
    v, s = lif_step(v, x, dataclasses.replace(neuron, v_threshold=neuron.v_threshold + beta * a))
    return (v, a, s), s


def synaptic_step(
    state: tuple[jax.Array, jax.Array], x: jax.Array, neuron: Neuron, tau_syn: float | jax.Array = 2.0
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Advances current-based LIF neurons by one step: inputs reach the membrane through a leaky current.

        i[t] = (1 - 1/tau_syn) i[t-1] + x[t]
        u[t] = (1 - 1/tau) v[t-1] + i[t]
        s[t] = H(u[t] - v_threshold)
        v[t] = u[t] - v_threshold s[t]

    Args:
      state: `(v, i)`, membrane and current after the step before, `[B, ...]` each; `i` is 0 at first.
      x: input of this step, `[B, ...]`, floating point.
      neuron: the parameters of the layer, but for the synapse.
      tau_syn: time constant of the current in steps, >= 1, a number or one for every unit.

    Returns:
      `((v, i), s)`: the new state, and the spikes (0 or 1), `[B, ...]` each.

    Raises:
      ValueError: `v` and `x` do not fit each other, or `tau_syn` is outside its range.
    """
    v, i = state
    check_current(i, x)
    check_tau("tau_syn", tau_syn)
    i = (1 - 1 / tau_syn) * i + x
    v, s = lif_step(v, i, neuron)
    return (v, i), s


alif_step.spikes = synaptic_step.spikes = spikes_of  # pyright: ignore[reportFunctionMemberAccess]

li = over_time(li_step)
alif = over_time(alif_step)
synaptic = over_time(synaptic_step)
