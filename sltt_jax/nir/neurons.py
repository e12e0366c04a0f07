"""NIR's neurons as cells of this library."""

from typing import Any

import numpy as np

from sltt_jax.layers import LI, LIF, Recurrent, Synaptic, at_least_float32
from sltt_jax.neurons import Neuron
from sltt_jax.nir.graphs import Node
from sltt_jax.nir.layers import Bias, Layer, Shape, bias_of, weights_of
from sltt_jax.surrogate import Surrogate


def cell_of(node: Node, shape: Shape, dt: float, surrogate: Surrogate) -> Layer:
    """Makes the layer of a node of neurons, with their lateral weights if there are any.

        v[t] = (1 - dt/tau) v[t-1] + (dt/tau) (v_leak + r I[t])             Euler's method
        v[t] = (1 - 1/(tau/dt)) v[t-1] + gain I[t]                          gain = r dt/tau

    Args:
      node: "LIF", "IF", "LI" or "CubaLIF".
      shape: of the neurons, channels first.
      dt: seconds a step.
      surrogate: of those that spike.

    Raises:
      ValueError: its parameters do not fit the shape, or are none of neurons of this library; the message
        names the node.
    """
    every = lambda field: _every(node, field, shape)
    r = every("r")
    tau, gain = np.full(shape, np.inf), r * dt
    if node.kind != "IF":
        tau = _steps(node, "tau_mem" if node.kind == "CubaLIF" else "tau", shape, dt)
        gain = r / tau
    decay_input = bool((r == 1).all()) and node.kind != "IF"
    gain = np.ones(shape) if decay_input else _but_for_rounding(gain)
    tau_syn = None
    if node.kind == "CubaLIF":
        tau_syn = _steps(node, "tau_syn", shape, dt)
        gain = gain * _but_for_rounding(every("w_in") / tau_syn)  # before the current is as good as after it
    if node.kind == "LI" and every("v_leak").any():
        raise node.wrong(f"must have a v_leak of 0, got {np.abs(every('v_leak')).max()}")
    fires = {} if node.kind == "LI" else _fires(node, shape)

    def make(dtype):
        tau_steps = _cast(_ours(tau), dtype)
        if node.kind == "LI":
            return LI(tau_steps, decay_input, name=node.name)
        values = {name: _cast(_ours(value), dtype) for name, value in fires.items()}
        neuron = Neuron(tau_steps, **values, decay_input=decay_input, surrogate=surrogate)
        if tau_syn is None:
            return LIF(neuron, name=node.name)
        return Synaptic(neuron, _cast(_ours(tau_syn), dtype), name=node.name)

    return _with_lateral(node, make, _ours(gain), shape)


def _with_lateral(node, make, gain, shape) -> Layer:
    if node.lateral is None:

        def cells(xs, temporal_gradient):
            xs = at_least_float32(xs)
            xs = xs if isinstance(gain, float) and gain == 1 else xs * _cast(gain, xs.dtype, xs.ndim)
            return make(xs.dtype)(xs, temporal_gradient=temporal_gradient)

        return Layer(cells, {}, shape)

    back = node.lateral
    weight = weights_of(back, "weight")
    if len(shape) != 1 or weight.shape != shape * 2:
        raise back.wrong(
            f"must have weights {shape * 2} back to {node.name!r}, neurons {shape}, got {weight.shape}"
        )
    gains = np.broadcast_to(np.ravel(gain), shape)
    times = lambda a: a if (gains == 1).all() else (a * gains).astype(a.dtype)
    params = {back.name: {"kernel": times(weight.T)}}
    if bias := bias_of(back, shape[0]):
        params[f"{back.name}.bias"] = {"bias": times(bias["bias"])}

    def recurrent(xs, temporal_gradient):
        xs = at_least_float32(xs)
        xs = xs if (gains == 1).all() else xs * _cast(gain, xs.dtype, xs.ndim)
        if bias:
            xs = Bias(name=f"{back.name}.bias")(xs)
        layer = Recurrent(make(xs.dtype), name=back.name)
        return layer(xs, temporal_gradient=temporal_gradient)

    return Layer(recurrent, params, shape)


def _every(node, field, shape):
    """Parameters of all neurons, in double precision."""
    array = node.values[field]
    if array.size != 1 and array.shape != shape:
        raise node.wrong(f"must have one {field}, or one for each of its neurons {shape}, got {array.shape}")
    return np.broadcast_to(array.reshape((1,) * len(shape)) if array.size == 1 else array, shape).astype(
        float
    )


def _steps(node, field, shape, dt):
    """Time constants in steps."""
    tau = _every(node, field, shape) / dt
    if (tau < 1 - 1e-9).any():
        raise node.wrong(f"must have a {field} of at least dt={dt} seconds, got {tau.min() * dt}")
    return np.maximum(tau, 1.0)


def _fires(node, shape):
    v_threshold, v_reset = _every(node, "v_threshold", shape), _every(node, "v_reset", shape)
    if (v_threshold <= 0).any() or (v_reset >= v_threshold).any():
        raise node.wrong(
            f"must have a v_threshold above 0 and above v_reset, got {v_threshold.min()} and {v_reset.max()}"
        )
    if "v_leak" in node.values and not np.array_equal(_every(node, "v_leak", shape), v_reset):
        raise node.wrong("must leak towards what it is reset to, got another v_leak than v_reset")
    return {"v_threshold": v_threshold, "v_reset": v_reset}


def _but_for_rounding(gain):
    """Ones, if what others have computed in single precision is meant to be that."""
    return np.ones_like(gain) if np.allclose(gain, 1, rtol=1e-6, atol=0) else gain


def _ours(values) -> float | np.ndarray:
    """One number if all are the same, else channels last and with an axis for the samples."""
    return float(values.flat[0]) if (values == values.flat[0]).all() else np.moveaxis(values, 0, -1)[None]


def _cast(value, dtype, ndim=None) -> Any:
    """Casts an array, with an axis in front for time if `ndim` is that of a block; a number stays one."""
    if isinstance(value, float):
        return value
    array = np.asarray(value, dtype)
    return array if ndim is None else array[None]
