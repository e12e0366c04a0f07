"""Rules under `jax.shard_map` with its checks of what varies over the devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from sltt_jax import Repeat, bptt, sltt, sltt_k, tbptt
from tests.common.nets import T, two_matrices

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
