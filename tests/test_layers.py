from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import functional
from sltt_jax.blocks import run
from sltt_jax.layers import FIRING_RATE, LIF, Conv, Dropout, StepBatchNorm, avg_pool, max_pool
from sltt_jax.models import MLP, ConvNet
from sltt_jax.neurons import Neuron, lif

pytestmark = pytest.mark.usefixtures("quick_compile")


def blocks(model, variables, xs, size, compiled=jax.jit, **kwargs):
    """Runs a layer over blocks of `size` steps; returns its outputs and its variables at the end."""
    apply = compiled(partial(model.apply, mutable=True, **kwargs))
    outputs = []
    for start in range(0, len(xs), size):
        y, changed = apply(variables, xs[start : start + size])
        variables = {**variables, **changed}
        outputs.append(y)
    return jnp.concatenate(outputs), variables


class TestLIF:
    def test_is_the_cell_with_its_membrane_in_a_collection(self, x64):
        xs = jnp.asarray(np.random.default_rng(0).normal(size=(7, 3, 5)))
        layer = LIF(Neuron(tau=3.0, v_reset=-0.3))
        variables = layer.init(jax.random.key(0), xs, temporal_gradient=True)
        chex.assert_trees_all_equal(variables["membrane"]["v"], np.full((3, 5), -0.3))
        v, expected = jax.jit(lif)(variables["membrane"]["v"], xs, layer.neuron)
        for size in (1, 3, 7):
            spikes, end = blocks(layer, variables, xs, size, temporal_gradient=False)
            np.testing.assert_array_equal(spikes, expected)
            np.testing.assert_allclose(end["membrane"]["v"], v, rtol=1e-14)
        assert 0.05 < expected.mean() < 0.6

    def test_firing_rate_of_every_step_and_sample(self):
        xs = jax.random.normal(jax.random.key(0), (4, 3, 5, 2))
        layer = LIF()
        variables = layer.init(jax.random.key(0), xs, temporal_gradient=True)
        apply = jax.jit(partial(layer.apply, temporal_gradient=True, mutable=["membrane", FIRING_RATE]))
        spikes, changed = apply(variables, xs)
        np.testing.assert_allclose(changed[FIRING_RATE]["rate"], np.asarray(spikes).mean((2, 3)), rtol=1e-6)
        _, changed = layer.apply(variables, xs, temporal_gradient=True, mutable=["membrane"])
        assert FIRING_RATE not in changed and FIRING_RATE not in variables

    def test_half_precision_spikes_and_single_precision_membrane(self):
        xs = jnp.ones((2, 3, 4), jnp.bfloat16)
        layer = LIF()
        variables = layer.init(jax.random.key(0), xs, temporal_gradient=True)
        spikes, changed = layer.apply(variables, xs, temporal_gradient=True, mutable=["membrane"])
        chex.assert_type([spikes, changed["membrane"]["v"]], [jnp.bfloat16, jnp.float32])


class TestStepBatchNorm:
    xs = np.random.default_rng(0).normal(3, 2, (6, 4, 5, 5, 3))

    def layer(self, **kwargs):
        model = StepBatchNorm(**kwargs)
        variables = jax.jit(partial(model.init, train=True))(jax.random.key(0), self.xs)
        rng = np.random.default_rng(1)
        params = {"scale": jnp.asarray(rng.normal(size=3)), "bias": jnp.asarray(rng.normal(size=3))}
        return model, {**variables, "params": params}

    def test_statistics_of_every_step_and_running_ones(self, x64, compiled):
        """Of blocks of 4 and 2, against a loop over the steps."""
        model, variables = self.layer()
        y, end = blocks(model, variables, self.xs, 4, compiled, train=True)
        params = jax.device_get(variables["params"])
        mean, var = np.zeros(3), np.ones(3)
        for x, got in zip(self.xs, y, strict=True):
            m, v = x.mean((0, 1, 2)), x.var((0, 1, 2))
            expected = (x - m) / np.sqrt(v + 1e-5) * params["scale"] + params["bias"]
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
            mean, var = 0.9 * mean + 0.1 * m, 0.9 * var + 0.1 * x.var((0, 1, 2), ddof=1)
        np.testing.assert_allclose(end["batch_stats"]["mean"], mean, rtol=1e-12)
        np.testing.assert_allclose(end["batch_stats"]["var"], var, rtol=1e-12)
        # In evaluation the running statistics serve every step and stay as they are.
        y, after = blocks(model, end, self.xs, 6, compiled, train=False)
        expected = (self.xs - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
        chex.assert_trees_all_equal(after["batch_stats"], end["batch_stats"])

    @pytest.mark.parametrize("size", [2, 4, 6])
    def test_every_block_size_gives_the_same(self, x64, size):
        model, variables = self.layer(momentum=0.7)
        expected, end = blocks(model, variables, self.xs, 1, train=True)
        got, got_end = blocks(model, variables, self.xs, size, train=True)
        np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-13)
        chex.assert_trees_all_close(got_end, end, rtol=1e-13)

    def test_gradient_is_that_of_linen(self, x64):
        """Of one step, against the layer of the library."""
        model, variables = self.layer()
        reference = nn.BatchNorm(use_running_average=False, epsilon=1e-5, use_fast_variance=False)
        x = jnp.asarray(self.xs[0])
        w = np.random.default_rng(2).normal(size=x.shape)

        def ours(params, x):
            y, _ = model.apply({**variables, "params": params}, x[None], train=True, mutable=True)
            return jnp.vdot(w, y[0])

        def theirs(params, x):
            y, _ = reference.apply({**variables, "params": params}, x, mutable=True)
            return jnp.vdot(w, y)

        a, b = (jax.jit(jax.grad(f, (0, 1)))(variables["params"], x) for f in (ours, theirs))
        chex.assert_trees_all_close(a, b, rtol=1e-9, atol=1e-12)

    def test_backward_pass_keeps_one_array_of_the_size_of_the_input(self, x64):
        """BPTT keeps it of every time step."""
        model, variables = self.layer()
        forward = lambda x: model.apply(variables, x, train=True, mutable=True)[0]
        _, backward = jax.vjp(jax.jit(forward), jnp.asarray(self.xs))
        assert [np.shape(kept) for kept in jax.tree.leaves(backward)].count(self.xs.shape) == 1

    def test_one_value_has_no_variance(self):
        with pytest.raises(ValueError, match=r"two values a channel, got shape \(2, 1, 3\)"):
            StepBatchNorm().init(jax.random.key(0), jnp.ones((2, 1, 3)), train=True)


class DropNet(nn.Module):
    @nn.compact
    def __call__(self, xs, *, train, temporal_gradient):
        return Dropout(0.5, deterministic=not train)(xs)


def test_dropout_mask_is_one_for_all_steps_of_an_update():
    xs = jnp.ones((7, 20, 30))

    @partial(jax.jit, static_argnums=1)
    def masked(key, chunk):
        return run(functional.applier(DropNet(), key=key), {}, {}, xs, chunk=chunk)[0]

    first = np.asarray(masked(jax.random.key(0), 1))
    for chunk in (1, 3, 7):  # 3 leaves a shorter block
        y = np.asarray(masked(jax.random.key(0), chunk))
        np.testing.assert_array_equal(y, first)
        assert (y == y[0]).all() and set(np.unique(y)) == {0, 2}
        assert 0.4 < (y[0] == 0).mean() < 0.6
    assert (first[0, 0] != first[0, 1]).any()  # a mask for every sample
    assert (masked(jax.random.key(1), 1) != first).any()
    off = functional.applier(DropNet(), train=False)
    chex.assert_trees_all_equal(run(off, {}, {}, xs)[0], xs)


def test_pooling_of_blocks():
    xs = np.random.default_rng(0).normal(size=(2, 3, 6, 4, 5)).astype(np.float32)
    windows = xs.reshape(2, 3, 3, 2, 2, 2, 5)
    chex.assert_trees_all_close(avg_pool(jnp.asarray(xs), 2), windows.mean((3, 5)), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(max_pool(jnp.asarray(xs), 2), windows.max((3, 5)))


def test_convolution_of_blocks_is_that_of_every_step():
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 6, 6, 4)), jnp.float32)
    layer, of_one = (conv(5, (3, 3), strides=2, padding=1) for conv in (Conv, nn.Conv))
    params = jax.jit(layer.init)(jax.random.key(1), xs)
    expected = np.stack([jax.jit(of_one.apply)(params, x) for x in xs])
    chex.assert_trees_all_close(jax.jit(layer.apply)(params, xs), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "shape", "axes"),
    [(MLP((4,)), (3, 5), "T, B, features"), (ConvNet((4,)), (3, 6, 6, 2), "T, B, H, W, C")],
)
def test_wrong_inputs_of_networks(model, shape, axes):
    with pytest.raises(ValueError, match=rf"\[{axes}\], got shape \(1, 3"):
        functional.init(model, jax.random.key(0, impl="rbg"), jnp.ones((*shape, 1)))
    with pytest.raises(ValueError, match="floating point inputs, got uint8"):
        init = partial(model.init, train=False, temporal_gradient=False)
        jax.eval_shape(init, jax.random.key(0), jnp.ones((2, *shape), jnp.uint8))


def test_membranes_at_rest():
    model = ConvNet((4,), neuron=Neuron(v_reset=-1.0))
    params, state = functional.init(model, jax.random.key(0, impl="rbg"), jnp.ones((3, 6, 6, 2)))
    step = jax.jit(partial(run, functional.applier(model)))
    _, state = step(params, state, jnp.ones((2, 3, 6, 6, 2)))
    fresh = functional.at_rest(model, state, jnp.ones((8, 6, 6, 2)))
    v = fresh["membrane"]["LIF_0"]["v"]
    chex.assert_trees_all_equal(v, np.full((8, 6, 6, 4), -1, np.float32))
    assert (state["membrane"]["LIF_0"]["v"] != -1).any()
    chex.assert_trees_all_equal(fresh["batch_stats"], state["batch_stats"])


def test_event_counts_become_floating_point_a_block_at_a_time():
    model = ConvNet((4,))
    counts = jnp.asarray(np.random.default_rng(0).integers(0, 4, (3, 2, 6, 6, 2)), jnp.uint8)
    params, state = functional.init(model, jax.random.key(0, impl="rbg"), counts[0])
    f = jax.jit(partial(run, functional.applier(model)))
    got, _ = f(params, state, counts)
    expected, _ = f(params, state, counts.astype(jnp.float32))
    chex.assert_trees_all_equal(got, expected)
