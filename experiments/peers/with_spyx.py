"""Spyx: BPTT through its `Sequential` and `run`, compiled by `jax.jit`.

Its neurons spike one step after the membrane crosses the threshold, and learn their decay. A scan of its
takes no layer with state but neurons, so that there is no batch normalisation and no residual block.
"""

# pyright: basic, reportMissingImports=false
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from spyx import axn
from spyx import nn as snn

from peers import jax_program
from peers.protocol import CannotError, Program
from peers.workloads import LEARNING_RATE, MOMENTUM, TAU, Workload, inputs, jax_weights

about = partial(jax_program.about, "spyx", "flax")


def network(workload: Workload, precision: str) -> snn.Sequential:
    """The network without its batch normalisation."""
    dtype = None if precision == "float32" else jnp.dtype(precision)
    rngs = nnx.Rngs(0)
    *size, n = workload.shape
    layers = []
    for kind, *args in workload.layers:
        if kind == "dense":
            layers.append(nnx.Linear(n, args[0], dtype=dtype, rngs=rngs))
            n = args[0]
        elif kind == "conv":
            features, stride, bias = args
            conv = nnx.Conv(n, features, (3, 3), stride, padding=1, use_bias=bias, dtype=dtype, rngs=rngs)
            layers.append(conv)
            n, size = features, [-(-s // stride) for s in size]
        elif kind == "lif":
            layers.append(snn.LIF((*size, n), 1 - 1 / TAU, activation=axn.triangular(1), rngs=rngs))
        elif kind == "pool":
            k = args[0]
            layers.append(partial(nnx.avg_pool, window_shape=(k, k), strides=(k, k)))
            size = [s // k for s in size]
        elif kind == "tile":
            k = args[0]
            layers.append(lambda x, k=k: jnp.broadcast_to(x, (len(x), k, k, x.shape[-1])))
            size = [k, k]
        elif kind == "flatten":
            layers.append(snn.Flatten())
            n, size = n * size[0] * size[1], []
        elif kind == "block":
            raise CannotError("its Sequential has no residual block")
    return snn.Sequential(*layers)


def program(workload: Workload, rule: str, precision: str) -> Program:
    """BPTT, compiled."""
    if rule != "bptt":
        raise CannotError("BPTT only")
    graph, params = nnx.split(network(workload, precision))

    params = jax.tree_util.tree_map_with_path(partial(_initial, workload), params)
    optimizer = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    xs, y = map(jnp.asarray, inputs(workload))

    def loss_of(params, xs, y):
        net = nnx.merge(graph, params)
        outputs, _ = snn.run(net, xs)
        outputs = outputs.astype(jnp.float32)
        if not workload.classes:
            return outputs.mean()
        labels = jnp.broadcast_to(y, outputs.shape[:2])
        return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()

    def update(state, xs, y):
        params, opt_state = state
        loss, grads = jax.value_and_grad(loss_of)(params, xs, y)
        changes, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, changes), opt_state), loss

    return jax_program.compile_update(update, (params, optimizer.init(params)), xs, y)


def _initial(workload, path, value):
    name = path[-2].key  # the last is "value"
    return value if name == "beta" else jnp.asarray(jax_weights(workload, name, value.shape))
