"""A trained network in integers alone, as hardware runs it."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sltt_jax.blocks import Apply, PyTree
from sltt_jax.cell_layers import LIF
from sltt_jax.fixed_point import IntegerNeuron, integer_lif, integer_neuron, membrane_bits
from sltt_jax.layers import StepBatchNorm
from sltt_jax.models.chain import Between, Call, calls, chain
from sltt_jax.models.folding import at_path, fold_layers
from sltt_jax.quantisation import quantise


class IntegerNetwork(NamedTuple):
    """A network whose weights, currents, membranes and spikes are integers.

    Attributes:
      apply: `apply(params, state, xs, *, temporal_gradient) -> (outputs, state)`, of integer inputs
        `[C, B, ...]`; the outputs are the integers of the last layer times their unit, float32. Nothing in it
        has a gradient.
      params: `{layer: {"kernel": int8 or int16, "bias": int32}}`.
      state: membranes at rest, `{layer: [B, ...]}`, int32.
      bits: that the membranes of each layer need, with the sign, so that none overflows, whatever the inputs
        are; and those of the "outputs".
    """

    apply: Apply
    params: dict[str, dict[str, jax.Array]]
    state: dict[str, jax.Array]
    bits: dict[str, int]


def integer_network(
    model: nn.Module,
    params: PyTree,
    state: PyTree,
    x: jax.Array,
    bits: int = 8,
    *,
    unit: float,
    largest: int,
    per_channel: bool = False,
    power_of_two: bool = False,
) -> IntegerNetwork:
    """Makes integers of a trained network: of its kernels, its biases, its neurons and its pooling.

        currents = q * inputs + round(bias / unit)          unit: the inputs' times the kernel's scale

    Batch norms are folded into the kernels, which are rounded as by `quantise`; biases have the unit of the
    currents and 32 bits. The mean of a window is its sum in a unit that is smaller by the window. Spikes are
    0 or 1.

    Args:
      model: layers one after the other: `nn.Dense`, `nn.Conv` of maps, `StepBatchNorm` and `LIF`, and between
        them pooling by means or sums, and flattening. The neurons have an integer form
        (`fixed_point.integer_neuron`).
      params: its parameters.
      state: its state, with the running statistics.
      x: the input of one step, `[B, ...]`; only its shape matters.
      bits: of a weight with its sign, as for `quantise`.
      unit: of the inputs: what the network was trained on is `unit` times the integers, > 0.
      largest: of the integer inputs, by their absolute value, >= 1.
      per_channel, power_of_two: as for `quantise`.

    Raises:
      ValueError: the network is not such a chain, a layer has no integer form, or a membrane needs more than
        32 bits; the message names the layer.
    """
    if not unit > 0 or largest < 1:
        raise ValueError(f"unit must be > 0 and largest >= 1, got {unit} and {largest}")
    found = calls(model, x)
    links = chain(found)
    params, state = fold_layers(found.layers, params, state)
    rounded = quantise(params, bits, per_channel=per_channel, power_of_two=power_of_two)
    biases = _biases(found.layers, params)
    stages, weights, membranes, needed = [], {}, {}, {}
    values = _Values(np.asarray(unit, np.float64), largest)
    for between, layer in links:
        if between.pool is not None or between.flatten:
            stages.append(_between(between))
            values = values.pooled(between)
        if layer is None:
            needed["outputs"] = 1 + values.largest.bit_length()
        elif isinstance(layer.module, nn.Dense | nn.Conv):
            kernel, scale = (
                at_path(tree, layer.path)["kernel"] for tree in (rounded.integers, rounded.scales)
            )
            weights[layer.name], values = _weights(kernel, scale, biases[layer.name], values)
            stages.append(_product(layer))
        elif isinstance(layer.module, LIF):
            neuron, needed[layer.name] = _neurons(layer, values)
            membranes[layer.name] = jnp.zeros((len(x), *layer.answer.shape), jnp.int32)
            stages.append(_cells(layer.name, neuron))
            values = _Values(np.ones(()), 1)
        elif not isinstance(layer.module, StepBatchNorm):
            raise ValueError(f"{layer.name} ({type(layer.module).__name__}) has no form in integers")
    for name, width in needed.items():
        if width > 32:
            raise ValueError(f"{name} could need {width} bits, and there are 32: take fewer than {bits} bits")
    unit_of_outputs = jnp.asarray(values.unit, jnp.float32)

    def apply(params, state, xs, *, temporal_gradient):
        del temporal_gradient
        for stage in stages:
            xs, state = stage(params, state, xs)
        return xs * jax.lax.broadcast_to_rank(unit_of_outputs, xs.ndim), state

    return IntegerNetwork(apply, weights, membranes, needed)


class _Values(NamedTuple):
    """What integers between two layers stand for: `unit` times each, a number or `[C]`, at most `largest`."""

    unit: np.ndarray
    largest: int

    def pooled(self, between: Between) -> "_Values":
        window = between.window**2
        return _Values(self.unit / window if between.pool == "avg" else self.unit, self.largest * window)


def _biases(layers: Sequence[Call], params: PyTree) -> dict[str, np.ndarray]:
    """Bias of each layer of weights, with that which folding has left in the norm after it."""
    biases, latest = {}, ""
    for layer in layers:
        if isinstance(layer.module, nn.Dense | nn.Conv):
            latest = layer.name
            own = at_path(params, layer.path).get("bias", 0.0)
            biases[latest] = np.broadcast_to(np.asarray(own, np.float64), layer.answer.shape[-1:])
        elif isinstance(layer.module, StepBatchNorm):
            biases[latest] = biases[latest] + np.asarray(at_path(params, layer.path)["bias"], np.float64)
    return biases


def _weights(kernel, scale, bias, values):
    """Returns the integers of a layer of weights, and what its currents stand for."""
    unit = values.unit * np.asarray(scale, np.float64).reshape(-1)
    integer_bias = np.round(bias / unit).astype(np.int64)
    inputs = tuple(range(kernel.ndim - 1))
    sums = values.largest * np.abs(np.asarray(kernel, np.int64)).sum(inputs) + np.abs(integer_bias)
    entry = {"kernel": kernel, "bias": jnp.asarray(integer_bias, jnp.int32)}
    return entry, _Values(unit, max(int(sums.max()), 1))


def _neurons(layer: Call, values: _Values) -> tuple[IntegerNeuron, int]:
    if layer.module.learn_tau:
        raise ValueError(f"{layer.name} has learned its time constants, and a shift has those of 2^n alone")
    try:
        neuron = integer_neuron(layer.module.neuron, values.unit)
    except ValueError as error:
        raise ValueError(f"{layer.name}: {error}") from error
    return neuron, membrane_bits(neuron, values.largest)


def _between(between: Between):
    def stage(params, state, xs):
        n = between.window
        if between.pool is not None:
            xs = jax.lax.reduce_window(xs, 0, jax.lax.add, (1, 1, n, n, 1), (1, 1, n, n, 1), "VALID")
        return (xs.reshape(*xs.shape[:2], -1) if between.flatten else xs), state

    return stage


def _product(layer: Call):
    def stage(params, state, xs):
        own = params[layer.name]
        kernel = own["kernel"].astype(jnp.int32)
        if isinstance(layer.module, nn.Dense):
            currents = xs @ kernel
        else:
            currents = _convolve(layer.module, xs.reshape(-1, *xs.shape[2:]), kernel)
            currents = currents.reshape(*xs.shape[:2], *currents.shape[1:])
        return currents + jax.lax.broadcast_to_rank(own["bias"], currents.ndim), state

    return stage


def _convolve(module: nn.Conv, xs, kernel):
    padding, pair = module.padding, lambda value: (value,) * 2 if isinstance(value, int) else value or (1, 1)
    if not isinstance(padding, str):
        padding = [(p, p) if isinstance(p, int) else p for p in pair(padding)]
    return jax.lax.conv_general_dilated(
        xs, kernel, pair(module.strides), padding, rhs_dilation=pair(module.kernel_dilation),
        feature_group_count=module.feature_group_count, dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def _cells(name: str, neuron: IntegerNeuron):
    def stage(params, state, xs):
        v, spikes = integer_lif(state[name], xs, neuron)
        return spikes, {**state, name: v}

    return stage
