"""Three small networks in double precision that every rule is tried on, and how gradients are compared."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sltt_jax import functional, losses, surrogate
from sltt_jax.models import MLP, ConvNet
from sltt_jax.neurons import Neuron, lif
from sltt_jax.rules import Rule

T = 6
BATCH = 4
STEP_LOSS = losses.classification(mse_weight=0.05)


class Net(NamedTuple):
    apply: Any
    params: Any
    state: Any
    inputs: jax.Array
    target: jax.Array
    step_loss: Any


def two_matrices(spike=surrogate.triangle(), tau=2.0) -> Net:  # noqa: B008
    """Hand-written, without flax: two layers of neurons, each a matrix; the state is a list of membranes."""
    neuron = Neuron(tau=tau, surrogate=spike)

    def apply(params, state, xs, *, temporal_gradient):
        v1, s1 = lif(state[0], xs @ params["w1"], neuron, temporal_gradient=temporal_gradient)
        v2, s2 = lif(state[1], s1 @ params["w2"], neuron, temporal_gradient=temporal_gradient)
        return s2, [v1, v2]

    rng = np.random.default_rng(0)
    params = {"w1": jnp.asarray(rng.normal(size=(5, 12)) * 0.6), "w2": jnp.asarray(rng.normal(size=(12, 3)))}
    state = [jnp.zeros((BATCH, 12)), jnp.zeros((BATCH, 3))]
    inputs = jnp.asarray(rng.normal(size=(T, BATCH, 5)))
    target = jnp.asarray(rng.uniform(size=(BATCH, 3)))
    return Net(apply, params, state, inputs, target, lambda out, target: jnp.mean((out - target) ** 2))


def mlp(T=T) -> Net:
    model = MLP(features=(24, 20), classes=5, neuron=Neuron(tau=2.0, v_threshold=0.5))
    return _linen(model, (7,), T)


def convnet(T=T, **kwargs) -> Net:
    model = ConvNet(features=(5, 6), classes=5, neuron=Neuron(tau=2.0), **kwargs)
    return _linen(model, (8, 8, 2), T)


def _linen(model, shape, T) -> Net:
    rng = np.random.default_rng(1)
    inputs = jnp.asarray(rng.normal(size=(T, BATCH, *shape)))
    params, state = functional.init(model, jax.random.key(0), inputs[0])
    params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
    target = jnp.asarray(rng.integers(0, model.classes, BATCH))
    return Net(functional.applier(model), params, state, inputs, target, STEP_LOSS)


NETS = {"two_matrices": two_matrices, "mlp": mlp, "convnet": convnet}


@functools.cache
def net(name: str) -> Net:
    return NETS[name]()


@functools.cache
def gradient(name: str, rule: Rule):
    """`((loss, aux), grads)` of a network under a rule, compiled; the key of SLTT-K is always the same."""
    n = net(name)
    f = jax.jit(rule.value_and_grad(n.apply, n.step_loss))
    return f(n.params, n.state, n.inputs, n.target, jax.random.key(7))


def difference(a, b) -> dict[str, float]:
    """For every parameter the largest difference over the largest entry of `b`."""
    flat_a, flat_b = jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)
    assert len(flat_a) == len(flat_b) > 0
    return {
        jax.tree_util.keystr(path): float(jnp.max(jnp.abs(x - y)) / jnp.max(jnp.abs(y)))
        for (path, x), y in zip(flat_a, flat_b, strict=True)
    }


def assert_close(a, b, bound=1e-10):
    wrong = {k: d for k, d in difference(a, b).items() if not d <= bound}
    assert not wrong, wrong
