"""Three small networks in double precision that every rule is tried on, and how gradients are compared."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from sltt_jax import functional, losses, surrogate
from sltt_jax.blocks import run
from sltt_jax.models import MLP, ConvNet
from sltt_jax.neurons import Neuron, lif
from sltt_jax.rules import Rule

T = 6
BATCH = 4
KEY = 7  # seed of the key that every rule is given

MODELS = {
    "mlp": MLP(features=(24, 20), classes=5, neuron=Neuron(tau=2.0, v_threshold=0.5)),
    "convnet": ConvNet(features=(5, 6), classes=5, neuron=Neuron(tau=2.0)),
}
SHAPES = {"mlp": (7,), "convnet": (8, 8, 2)}
NAMES = ("two_matrices", *MODELS)


class Net(NamedTuple):
    """A network and a batch, in the order in which a rule's function takes them.

    Attributes:
      apply: the network as a rule takes it.
      params, state: its pytrees, the parameters in double precision.
      inputs: `[T, B, ...]`.
      target: of all steps, `[B]` or `[B, classes]`.
      step_loss: of one step.
    """

    apply: Any
    params: Any
    state: Any
    inputs: jax.Array
    target: jax.Array
    step_loss: Any


def two_matrices(spike=surrogate.triangle()) -> Net:  # noqa: B008
    """Hand-written, without flax: two layers of neurons, each a matrix; the state is a list of membranes."""
    neuron = Neuron(tau=2.0, surrogate=spike)

    def apply(params, state, xs, *, temporal_gradient):
        v1, s1 = lif(state[0], xs @ params["w1"], neuron, temporal_gradient=temporal_gradient)
        v2, s2 = lif(state[1], s1 @ params["w2"], neuron, temporal_gradient=temporal_gradient)
        return s2, [v1, v2]

    rng = np.random.default_rng(0)
    params = {"w1": jnp.asarray(rng.normal(size=(5, 12)) * 0.6), "w2": jnp.asarray(rng.normal(size=(12, 3)))}
    state = [jnp.zeros((BATCH, 12)), jnp.zeros((BATCH, 3))]
    inputs = jnp.asarray(rng.normal(size=(T, BATCH, 5)))
    target = jnp.asarray(rng.uniform(size=(BATCH, 3)))
    return Net(apply, params, state, inputs, target, squared_error)


def written_out(n: Net, params, detach):
    """Mean loss of `two_matrices` in a loop that shares no line with the cells or the rules.

    Args:
      n: the network.
      params: its parameters.
      detach: is applied to every carried membrane: `lax.stop_gradient` for SLTT, the identity for BPTT.
    """

    @jax.custom_jvp
    def spike(u):
        return (u >= 1.0).astype(u.dtype)

    @spike.defjvp
    def _(primals, tangents):
        (u,), (du,) = primals, tangents
        return spike(u), jnp.maximum(0, 1 - jnp.abs(u - 1)) * du

    v1, v2 = n.state
    total = 0.0
    for x in n.inputs:
        u1 = 0.5 * detach(v1) + x @ params["w1"]
        s1 = spike(u1)
        u2 = 0.5 * detach(v2) + s1 @ params["w2"]
        s2 = spike(u2)
        v1, v2 = u1 - s1, u2 - s2
        total += n.step_loss(s2, n.target)
    return total / T


def squared_error(outputs, target):
    return jnp.mean((outputs - target) ** 2)


def _linen(model, shape) -> Net:
    rng = np.random.default_rng(1)
    inputs = jnp.asarray(rng.normal(size=(T, BATCH, *shape)))
    # Of this kind of key the initializers are compiled in a quarter of the time.
    params, state = functional.init(model, jax.random.key(0, impl="rbg"), inputs[0])
    params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
    if model == MODELS["mlp"]:
        target, step_loss = rng.uniform(size=(BATCH, model.classes)), squared_error
    else:
        target, step_loss = rng.integers(0, model.classes, BATCH), losses.classification(mse_weight=0.05)
    return Net(functional.applier(model), params, state, inputs, jnp.asarray(target), step_loss)


def net(name: str) -> Net:
    """One of `NAMES`, the same for all tests and in double precision, which the test must be in."""
    assert jax.config.read("jax_enable_x64"), "this test wants the fixture x64"
    return _net(name)


@functools.cache
def _net(name):
    return two_matrices() if name == "two_matrices" else _linen(MODELS[name], SHAPES[name])


@functools.cache
def program(name: str, rule: Rule):
    """`f(params, state, inputs, target, key) -> ((loss, aux), grads)` of a network under a rule, compiled.

    One function a rule, so that every test which calls it with the same shapes shares a program.
    """
    n = net(name)
    return jax.jit(rule.value_and_grad(n.apply, n.step_loss))


@functools.cache
def gradient(name: str, rule: Rule):
    """`((loss, aux), grads)` of a network under a rule; the key of SLTT-K is always the same."""
    n = net(name)
    return program(name, rule)(n.params, n.state, n.inputs, n.target, jax.random.key(KEY))


@functools.cache
def forward(name: str):
    """The outputs of all steps, `[T, B, ...]`, and the state after the last, without a rule."""
    n = net(name)
    return jax.jit(functools.partial(run, n.apply))(n.params, n.state, n.inputs)


def difference(a, b) -> dict[str, float]:
    """For every parameter the largest difference over the largest entry of `b`."""
    chex.assert_trees_all_equal_shapes(a, b)
    a, b = jax.device_get((a, b))  # NumPy compiles nothing
    leaves = zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True)
    found = {
        jax.tree_util.keystr(path): float(np.abs(x - y).max() / np.abs(y).max()) for (path, x), y in leaves
    }
    assert found
    return found


def assert_close(a, b, bound=1e-10):
    """Asserts that `difference` is at most `bound` everywhere."""
    wrong = {k: d for k, d in difference(a, b).items() if not d <= bound}
    assert not wrong, wrong
