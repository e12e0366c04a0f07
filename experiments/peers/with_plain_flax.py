"""Flax Linen and `lax.scan` over the time steps, as one writes it without this library.

SLTT is a `value_and_grad` within the scan, its gradients added up in the carry. The convolution is Linen's,
and its gradient XLA's own.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from peers import jax_program
from peers.protocol import Program
from peers.workloads import LEARNING_RATE, MOMENTUM, TAU, Workload, inputs, jax_weights

about = partial(jax_program.about, "flax")


@jax.custom_jvp
def spike(x):
    return (x >= 0).astype(x.dtype)


@spike.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return spike(x), jnp.maximum(0, 1 - jnp.abs(x)) * dx


class Net(nn.Module):
    """The network of a workload, `(x [B, ...], membranes) -> (outputs, membranes)`; None: all at rest."""

    layers: tuple
    dtype: Any = None

    @nn.compact
    def __call__(self, x, membranes=None):
        after = []

        def lif(x):
            x = x.astype(jnp.float32)
            u = x if membranes is None else (1 - 1 / TAU) * membranes[len(after)] + x
            s = spike(u - 1)
            after.append(u - s)
            return s

        norm = lambda x: nn.BatchNorm(use_running_average=False, momentum=0.9)(x)
        conv = partial(nn.Conv, dtype=self.dtype)
        for kind, *args in self.layers:
            if kind == "dense":
                x = nn.Dense(args[0], dtype=self.dtype)(x)
            elif kind == "conv":
                features, stride, bias = args
                x = conv(features, (3, 3), stride, padding=1, use_bias=bias)(x)
            elif kind == "norm":
                x = norm(x)
            elif kind == "lif":
                x = lif(x)
            elif kind == "pool":
                x = nn.avg_pool(x, (args[0],) * 2, (args[0],) * 2)
            elif kind == "tile":
                x = jnp.broadcast_to(x, (len(x), args[0], args[0], x.shape[-1]))
            elif kind == "flatten":
                x = x.reshape(len(x), -1)
            else:
                features, stride = args
                s = lif(norm(x))
                same = stride == 1 and x.shape[-1] == features
                shortcut = s if same else conv(features, (1, 1), stride)(s)
                x = lif(norm(conv(features, (3, 3), stride, padding=1)(s)))
                x = conv(features, (3, 3), padding=1)(x) + shortcut
        return x.astype(jnp.float32), after


def make_update(workload: Workload, rule: str, precision: str):
    """`(update, state, xs, y)`: `update(state, xs, y) -> (state, loss)`."""
    net = Net(workload.layers, None if precision == "float32" else jnp.dtype(precision))
    optimizer = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    xs, y = map(jnp.asarray, inputs(workload))
    T = workload.T
    x0 = xs if workload.static else xs[0]
    variables = jax.eval_shape(net.init, jax.random.key(0), x0)
    params = jax.tree_util.tree_map_with_path(
        lambda path, p: jnp.asarray(jax_weights(workload, path[-1].key, p.shape)), variables["params"]
    )
    stats = jax.tree_util.tree_map_with_path(
        lambda path, a: jnp.full(a.shape, float(path[-1].key == "var"), a.dtype),
        variables.get("batch_stats", {}),
    )

    def step_loss(params, stats, membranes, x, y):
        variables = {"params": params, "batch_stats": stats}
        (outputs, membranes), new = net.apply(variables, x, membranes, mutable=["batch_stats"])
        if workload.classes:
            loss = optax.softmax_cross_entropy_with_integer_labels(outputs, y).mean()
        else:
            loss = outputs.mean()
        return loss / T, (new.get("batch_stats", {}), membranes)

    def at_rest(params, stats, x):
        variables = {"params": params, "batch_stats": stats}
        shapes = jax.eval_shape(lambda v, x: net.apply(v, x, mutable=["batch_stats"])[0][1], variables, x)
        return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)

    def scan(step, carry, xs):
        if workload.static:
            return jax.lax.scan(lambda c, _: step(c, xs), carry, length=T)
        return jax.lax.scan(step, carry, xs)

    def bptt(params, stats, membranes, xs, y):
        def loss(params):
            def step(carry, x):
                stats, membranes = carry
                value, carry = step_loss(params, stats, membranes, x, y)
                return carry, value

            (after, _), values = scan(step, (stats, membranes), xs)
            return values.sum(), after

        return jax.value_and_grad(loss, has_aux=True)(params)

    def sltt(params, stats, membranes, xs, y):
        def step(carry, x):
            stats, membranes, grads = carry
            gradient = jax.value_and_grad(step_loss, has_aux=True)
            (value, (stats, membranes)), g = gradient(params, stats, membranes, x, y)
            return (stats, membranes, jax.tree.map(jnp.add, grads, g)), value

        start = stats, membranes, jax.tree.map(jnp.zeros_like, params)
        (stats, _, grads), values = scan(step, start, xs)
        return (values.sum(), stats), grads

    def update(state, xs, y):
        params, stats, opt_state = state
        membranes = at_rest(params, stats, xs if workload.static else xs[0])
        (loss, stats), grads = {"bptt": bptt, "sltt": sltt}[rule](params, stats, membranes, xs, y)
        changes, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, changes), stats, opt_state), loss

    return update, (params, stats, optimizer.init(params)), xs, y


def program(workload: Workload, rule: str, precision: str) -> Program:
    """BPTT or SLTT, compiled."""
    return jax_program.compile_update(*make_update(workload, rule, precision))
