"""Linen layers of cells: one for every entry of `[B, ...]`, on blocks of time steps `[T, B, ...]`.

    LIF, ALIF, Synaptic     spike
    LI                      does not: a readout
    Recurrent(cell)         any of them with lateral weights

The state of a layer is in the collection "membrane", at least float32 whatever the inputs are. If the
collection "firing_rate" is mutable, the mean spike of every step and sample is left there, `[T, B]`. With
`learn_tau=True` a layer learns its time constants, one for every channel: see `sltt_jax.time_constants`.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from sltt_jax.bits import InBits
from sltt_jax.blocks import at_least_float32
from sltt_jax.cell_blocks import Step, over_time, recurrent
from sltt_jax.cells import alif_step, li_step, synaptic_step
from sltt_jax.cpu import stored
from sltt_jax.neurons import Neuron, lif_step
from sltt_jax.surrogate import Surrogate
from sltt_jax.time_constants import LOGIT_DECAY, logit_decay_of, tau_of

MEMBRANE = "membrane"
FIRING_RATE = "firing_rate"


class Cells(nn.Module, kw_only=True):
    """Base of the layers of cells.

    A layer of your own is a subclass with a `step`, the names of its `state`, the first of which is the
    membrane `v`, and `parameters`, which are what `step` takes beside state and input.

    Attributes:
      learn_tau: learn the time constants, from those given on.
      tau_spread: standard deviation over the channels of what they start from, in the logarithm of `tau - 1`:
        with 1 two thirds of them are within a factor of 2.7. Of those that are learned.
      dtype: of the spikes, exact in any, and of the surrogate derivative that is kept for the backward pass;
        by default that of the inputs and of the state.
    """

    learn_tau: bool = False
    tau_spread: float = 0.0
    dtype: Any = None

    step: ClassVar[Step]
    state: ClassVar[Any]  # names in place of the arrays of the step's state
    spikes: ClassVar[bool] = True

    def parameters(self, xs: jax.Array) -> tuple:
        """Returns what `step` takes after `(state, x)`; `xs` are the currents of a block."""
        raise NotImplementedError

    @property
    def v_rest(self) -> float | jax.Array:
        """Membrane before the first step; all else starts at 0."""
        return 0.0

    def time_constant(self, xs: jax.Array, tau: float | jax.Array, ending: str = "") -> float | jax.Array:
        """Returns `tau` or, if it is learned, what has become of it."""
        if not self.learn_tau:
            return tau
        spread = lambda key: self.tau_spread * jax.random.normal(key, xs.shape[-1:])
        p = self.param(LOGIT_DECAY + ending, lambda key: logit_decay_of(tau) + spread(key))
        return jax.lax.broadcast_to_rank(tau_of(p.astype(xs.dtype)), xs.ndim - 1)

    @nn.compact
    def __call__(
        self, xs: jax.Array, *, temporal_gradient: bool, lateral: jax.Array | None = None
    ) -> jax.Array:
        """Returns the spikes (0 or 1), or membranes of an `LI`, of the currents `xs`, both `[T, B, ...]`.

        Args:
          xs: input currents.
          temporal_gradient: as the rule wants it.
          lateral: weights from neuron to neuron, `[n, n]`, of currents `[T, B, n]`; `Recurrent` has them.
        """
        dtype, xs = xs.dtype, at_least_float32(xs)
        step, state, parameters = self.step, self.state, self.parameters(xs)
        # What is computed again from bits is not worth its place in memory.
        stores = self.dtype is not None and not isinstance(temporal_gradient, InBits)
        if stores:
            parameters = tuple(_deriving_in(self.dtype, p) for p in parameters)
        if lateral is not None:
            step, state, parameters = recurrent(step), (state, "y"), (lateral.astype(xs.dtype), *parameters)
        rest = {name: jnp.zeros((), xs.dtype) for name in jax.tree.leaves(state)}
        rest["v"] = jnp.asarray(self.v_rest, xs.dtype)
        start = lambda name: self.variable(MEMBRANE, name, lambda: jnp.broadcast_to(rest[name], xs.shape[1:]))
        variables = jax.tree.map(start, state)
        values = jax.tree.map(lambda variable: variable.value, variables)
        values, ys = over_time(step)(values, xs, *parameters, temporal_gradient=temporal_gradient)
        if not self.is_initializing():
            for variable, value in zip(jax.tree.leaves(variables), jax.tree.leaves(values), strict=True):
                variable.value = value
            if self.spikes:
                rate = ys.mean(range(2, ys.ndim))
                self.sow(FIRING_RATE, "rate", rate, init_fn=lambda: rate, reduce_fn=lambda _, new: new)
        if not self.spikes:
            return ys
        ys = ys.astype(self.dtype or dtype)
        return stored(ys) if stores else ys


class LIF(Cells):
    """Leaky integrate-and-fire neurons (`lif_step`); their membrane is the variable `v`.

    Attributes:
      neuron: the parameters of the layer.
    """

    neuron: Neuron = Neuron()
    step = staticmethod(lif_step)
    state = "v"

    @property
    def v_rest(self):
        return self.neuron.v_rest

    def parameters(self, xs):
        return (_neuron(self, xs),)


class ALIF(Cells):
    """LIF neurons with an adaptive threshold (`alif_step`); their state is `v`, `a` and `s`.

    Attributes:
      neuron: the parameters of the layer, but for the adaptation.
      tau_a: time constant of the adaptation in steps.
      beta: rise of the threshold of a neuron that always fires.
    """

    neuron: Neuron = Neuron()
    tau_a: float = 100.0
    beta: float = 1.8
    step = staticmethod(alif_step)
    state = ("v", "a", "s")

    @property
    def v_rest(self):
        return self.neuron.v_rest

    def parameters(self, xs):
        return _neuron(self, xs), self.time_constant(xs, self.tau_a, "_a"), self.beta


class Synaptic(Cells):
    """LIF neurons behind a leaky current (`synaptic_step`); their state is `v` and `i`.

    Attributes:
      neuron: the parameters of the layer, but for the synapses.
      tau_syn: time constant of the current in steps.
    """

    neuron: Neuron = Neuron()
    tau_syn: float = 2.0
    step = staticmethod(synaptic_step)
    state = ("v", "i")

    @property
    def v_rest(self):
        return self.neuron.v_rest

    def parameters(self, xs):
        return _neuron(self, xs), self.time_constant(xs, self.tau_syn, "_syn")


class LI(Cells):
    """Leaky integrators (`li_step`), whose output is their membrane `v`, at least float32.

    Attributes:
      tau: time constant in steps.
      decay_input: multiply the input by `1/tau`: a moving average, as large at any `tau`.
    """

    tau: float = 2.0
    decay_input: bool = False
    step = staticmethod(li_step)
    state = "v"
    spikes = False

    def parameters(self, xs):
        return self.time_constant(xs, self.tau), self.decay_input


class Recurrent(nn.Module):
    """Lateral weights around a layer of cells: `x[t] + s[t-1] w` are its currents.

    The outputs of the step before are the variable `y` of the layer. In analyses the layer goes by its own
    name, beside this one.

    Attributes:
      cell: `LIF(...)` or another of the layers above, of currents `[T, B, n]`.
      kernel_init: of the weights `[n, n]`, from neuron to neuron.
    """

    cell: Cells
    kernel_init: nn.initializers.Initializer = nn.initializers.orthogonal()

    @nn.compact
    def __call__(self, xs: jax.Array, *, temporal_gradient: bool) -> jax.Array:
        """Returns what the layer does, `[T, B, n]`.

        Raises:
          ValueError: `xs` has other axes.
        """
        if xs.ndim != 3:
            raise ValueError(f"lateral weights need currents [T, B, n], got shape {xs.shape}")
        n = xs.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (n, n))
        return self.cell(xs, temporal_gradient=temporal_gradient, lateral=kernel)


def _neuron(layer, xs):
    return dataclasses.replace(layer.neuron, tau=layer.time_constant(xs, layer.neuron.tau))


def _deriving_in(dtype, parameter):
    """Returns a parameter of a cell; of neurons those whose surrogate derivative is kept in `dtype`."""
    if not isinstance(parameter, Neuron) or not isinstance(parameter.surrogate, Surrogate):
        return parameter
    return dataclasses.replace(parameter, surrogate=dataclasses.replace(parameter.surrogate, dtype=dtype))
