"""The same updates on one device and on four, compiled once for all tests of a process."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from sltt_jax import losses, training
from sltt_jax.data import encoders
from sltt_jax.models import MLP, ConvNet
from sltt_jax.neurons import Neuron
from sltt_jax.rules import Rule, bptt, sltt, sltt_k

LOSS = losses.classification(mse_weight=0.05)
T, UPDATES = 3, 5
RULES = {"bptt": bptt(), "sltt": sltt(), "sltt_k": sltt_k(2)}
OPTIMIZER = training.make_optimizer("sgd", 0.1, weight_decay=0.01)


def network(net, axis_name=None):
    """A network without dropout, whose masks differ from device to device.

    `net` is "without batch norm", "statistics of each device" or "synchronised".
    """
    if net == "without batch norm":
        return MLP((8,), 3, Neuron(tau=1.5))
    return ConvNet((4,), 3, Neuron(tau=1.5), axis_name=axis_name if net == "synchronised" else None)


def encoder(net):
    return encoders.flat(encoders.direct(T)) if net == "without batch norm" else encoders.direct(T)


def batches(dtype, count=UPDATES):
    rng = np.random.default_rng(0)
    return [
        {"x": rng.normal(size=(8, 6, 6, 2)).astype(dtype), "y": rng.integers(0, 3, 8)} for _ in range(count)
    ]


@functools.cache
def start(net, dtype):
    """A state whose floating point arrays are all of a type."""
    init = jax.jit(training.init_state, static_argnums=(0, 1, 2))
    state = init(network(net), OPTIMIZER, encoder(net), jax.random.key(0), batches(dtype)[0]["x"])
    cast = lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a
    return jax.tree.map(cast, state)


def make(net, rule: Rule, axis_name=None):
    return training.make_update(
        network(net, axis_name), rule, LOSS, OPTIMIZER, encoder(net), axis_name=axis_name
    )


@functools.cache
def on_one(net, rule, dtype):
    """State after the updates on one device, and the metrics of the last."""
    state, update = start(net, dtype), jax.jit(make(net, RULES[rule]))
    for batch in batches(dtype):
        state, metrics = update(state, batch)
    return state, metrics


@functools.cache
def on_four(net, rule, dtype):
    """State and metrics after the same updates on four devices, and the text of the compiled program."""
    devices = training.local_devices(4)
    update = training.parallel(make(net, RULES[rule], training.AXIS), devices, arguments=1, donate=True)
    state = training.replicate(jax.tree.map(jnp.copy, start(net, dtype)), devices)
    # The text is of the very program that is run: `pmap` would compile it again.
    program = update.lower(state, training.split(batches(dtype)[0], devices)).compile()
    for batch in batches(dtype):
        state, metrics = program(state, training.split(batch, devices))
    return state, metrics, program.as_text()
