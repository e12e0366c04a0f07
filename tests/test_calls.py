"""Calls that users of JAX expect to work: exported programs, dicts of inputs, NumPy's integers."""

import subprocess
import sys
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from sltt_jax import Neuron, bptt, functional, losses, run, sltt, sltt_k, tbptt
from sltt_jax.analysis import assert_memory_flat
from sltt_jax.layers import LIF, Conv, Dense
from tests.common.nets import two_matrices

pytestmark = pytest.mark.usefixtures("quick_compile")

T = 3


class Export(nn.Module):
    """Layers that choose how they compute by the size of a batch, with channels enough for all ways."""

    @nn.compact
    def __call__(self, xs, *, train, temporal_gradient):
        del train
        for _ in range(2):
            xs = LIF(Neuron(v_threshold=0.2))(Conv(32, (3, 3))(xs), temporal_gradient=temporal_gradient)
        return Dense(3)(xs.reshape(*xs.shape[:2], -1))


@pytest.mark.parametrize("what", ["outputs", pytest.param("gradient", marks=pytest.mark.slow)])
def test_export_for_any_batch_size(what):
    model, rng = Export(), np.random.default_rng(0)
    xs, y = jnp.asarray(rng.normal(size=(T, 5, 8, 8, 32)), jnp.float32), jnp.asarray([0, 1, 2, 1, 0])
    params, _ = functional.init(model, jax.random.key(0), xs[0])

    def compute(params, xs, y):
        state = functional.at_rest(model, {}, xs[0])
        apply = functional.applier(model)
        if what == "outputs":
            return run(apply, params, state, xs)[0].sum(0)
        return sltt().value_and_grad(apply, losses.cross_entropy)(params, state, xs, y)[1]

    (B,) = export.symbolic_shape("B")
    sizes = lambda a, shape: jax.ShapeDtypeStruct(shape, a.dtype)
    forms = jax.tree.map(lambda p: sizes(p, p.shape), params), sizes(xs, (T, B, 8, 8, 32)), sizes(y, (B,))
    program = export.export(jax.jit(compute))(*forms)
    expected = jax.jit(compute)(params, xs, y)
    chex.assert_trees_all_close(program.call(params, xs, y), expected, rtol=1e-3, atol=1e-4)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected)) > 1e-2


class TwoInputs(nn.Module):
    @nn.compact
    def __call__(self, xs, *, train, temporal_gradient):
        del train
        both = Dense(8)(xs["image"]) + Dense(8)(xs["counts"])
        return Dense(3)(LIF()(both, temporal_gradient=temporal_gradient))


@pytest.mark.slow
def test_inputs_of_a_linen_network_that_are_a_dict():
    xs = {"image": jnp.ones((T, 4, 5)), "counts": jnp.ones((T, 4, 6), jnp.uint8)}
    params, state = functional.init(TwoInputs(), jax.random.key(0), jax.tree.map(lambda x: x[0], xs))
    f = jax.jit(sltt().value_and_grad(functional.applier(TwoInputs()), losses.cross_entropy))
    (loss, aux), grads = f(params, state, xs, jnp.zeros(4, int))
    chex.assert_shape(aux.outputs, (4, 3))
    assert loss > 0 and jnp.abs(grads["Dense_1"]["kernel"]).max() > 0


@pytest.mark.parametrize("build", [sltt, tbptt, sltt_k, lambda n: bptt(chunk=n)])
def test_numpys_integers(build):
    assert build(np.int64(2)) == build(2) and hash(build(np.int64(2))) == hash(build(2))
    assert str(build(np.int64(2))) == str(build(2))


def test_remat_of_a_layer_that_is_told_by_keyword():
    layer = nn.remat(LIF)()
    with pytest.raises(ValueError, match="temporal_gradient must be True or False when a network is traced"):
        layer.init(jax.random.key(0), jnp.ones((2, 3, 4)), temporal_gradient=False)


@pytest.mark.slow
def test_memory_is_flat_over_blocks_of_any_length():
    """Over 8 and 64 blocks, where 8 steps would be too few for a chunk of 10."""
    net = two_matrices()
    wide = {"w1": jnp.ones((5, 12)), "w2": jnp.ones((12, 3))}
    y = jnp.zeros((4, 3))
    assert_memory_flat(
        net.apply, net.step_loss, sltt(10), wide, net.state, jnp.ones((1, 4, 5)), y, tolerance=0.05
    )


STREAM = """
import jax.numpy as jnp, numpy as np
from pathlib import Path
from sltt_jax import sltt, stream

apply = lambda params, state, xs, *, temporal_gradient: (xs * params, state)
f = stream(sltt(), apply, lambda outputs, target: outputs.mean() - target)
pages, T = [], 4000

def blocks():
    for t in range(T):
        if t in (1000, T - 1):
            pages.append(int(Path("/proc/self/statm").read_text().split()[1]))
        yield np.ones((1, 2), np.float32)

f(jnp.ones(()), (), blocks(), 0.0, T=T)
print(4096 * (pages[1] - pages[0]) / (T - 1000))
"""


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="only Linux tells the memory of a process so"
)
def test_a_stream_keeps_a_few_bytes_a_step():
    """A view of a loss on the host would keep what JAX has of it, 3.4 kB a step."""
    run = subprocess.run([sys.executable, "-c", STREAM], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 1500
