"""Rules under `jax.shard_map` with its checks of what varies over the devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from sltt_jax import Repeat, bptt, functional, sltt, sltt_k, tbptt
from tests.common import nets
from tests.common.nets import T, assert_close, two_matrices

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")
DEVICES, KEY = 4, jax.random.key(0)
EVERYWHERE, BATCH = PartitionSpec(), PartitionSpec(None, "devices")


@pytest.mark.parametrize(
    ("rule", "repeat"),
    [
        (sltt(4), False),
        (sltt(), True),
        (sltt_k(2), False),
        pytest.param(tbptt(4), False, marks=pytest.mark.slow),
        pytest.param(bptt(remat=True), False, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_rule(rule, repeat):
    """Gradients of replicated parameters are summed over the devices, and of varying ones each is its own."""
    net = two_matrices()
    f = rule.value_and_grad(net.apply, net.step_loss)
    mesh = jax.make_mesh((DEVICES,), ("devices",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(0)
    xs, y = jnp.asarray(rng.normal(size=(T, 8, 5))), jnp.asarray(rng.uniform(size=(8, 3)))
    inputs = lambda xs: Repeat(xs[0], T) if repeat else xs
    rest = lambda B: [jnp.zeros((B, 12)), jnp.zeros((B, 3))]  # zeros made inside do not vary by themselves

    def part(params, xs, y, key):
        varying = jax.lax.pcast(params, "devices", to="varying")
        arguments = rest(8 // DEVICES), inputs(xs), y, key
        (loss, aux), summed = f(params, *arguments)
        _, own = f(varying, *arguments)
        return jax.lax.pmean((loss, own), "devices"), summed, aux.outputs

    specs = EVERYWHERE, BATCH, PartitionSpec("devices"), EVERYWHERE
    sharded = jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=(EVERYWHERE, EVERYWHERE, specs[2]))
    (loss, mean), summed, outputs = jax.jit(sharded)(net.params, xs, y, KEY)
    (expected_loss, aux), grads = jax.jit(f)(net.params, rest(8), inputs(xs), y, KEY)
    chex.assert_trees_all_close((loss, mean, outputs), (expected_loss, grads, aux.outputs), rtol=1e-12)
    chex.assert_trees_all_close(summed, jax.tree.map(lambda g: DEVICES * g, grads), rtol=1e-12)
    assert all(jnp.abs(g).max() > 1e-4 for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("rule", [sltt(3), pytest.param(bptt(), marks=pytest.mark.slow)], ids=str)
def test_convolutions_and_batch_statistics(rule):
    """The gradient of replicated parameters is the sum of those of the devices' own batches."""
    net, each = nets.net("convnet"), nets.BATCH // 2
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    model = nets.MODELS["convnet"]
    x = net.inputs[0, :each]
    state = functional.at_rest(model, net.state, x)
    f = rule.value_and_grad(net.apply, net.step_loss)
    gradient = lambda xs, y: f(net.params, state, xs, y)[1]
    part = jax.shard_map(
        lambda params, xs, y: f(params, state, xs, y)[1],
        mesh=mesh, in_specs=(EVERYWHERE, BATCH, PartitionSpec("devices")), out_specs=EVERYWHERE,
    )  # fmt: skip
    found = jax.jit(part)(net.params, net.inputs, net.target)
    halves = [jax.jit(gradient)(net.inputs[:, h], net.target[h]) for h in (slice(0, each), slice(each, None))]
    assert_close(found, jax.tree.map(jnp.add, *halves))
    assert all(np.abs(g).max() > 1e-6 for g in jax.tree.leaves(found))
