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


def blocks(model, variables, xs, size, **kwargs):
    """Runs a layer over blocks of `size` steps; returns its outputs and its variables at the end."""
    outputs = []
    for start in range(0, len(xs), size):
        y, changed = model.apply(variables, xs[start : start + size], mutable=True, **kwargs)
        variables = {**variables, **changed}
        outputs.append(y)
    return jnp.concatenate(outputs), variables


class TestLIF:
    def test_is_the_cell_with_its_membrane_in_a_collection(self, x64):
        xs = jax.random.normal(jax.random.key(0), (7, 3, 5))
        layer = LIF(Neuron(tau=3.0, v_reset=-0.3))
        variables = layer.init(jax.random.key(0), xs, temporal_gradient=True)
        np.testing.assert_array_equal(variables["membrane"]["v"], jnp.full((3, 5), -0.3))
        v, expected = lif(variables["membrane"]["v"], xs, layer.neuron)
        for size in (1, 3, 7):
            spikes, end = blocks(layer, variables, xs, size, temporal_gradient=False)
            np.testing.assert_array_equal(spikes, expected)
            np.testing.assert_allclose(end["membrane"]["v"], v, rtol=1e-14)
        assert 0.05 < expected.mean() < 0.6

    def test_firing_rate_of_every_step_and_sample(self):
        xs = jax.random.normal(jax.random.key(0), (4, 3, 5, 2))
        layer = LIF()
        variables = layer.init(jax.random.key(0), xs, temporal_gradient=True)
        spikes, changed = layer.apply(
            variables, xs, temporal_gradient=True, mutable=["membrane", FIRING_RATE]
        )
        np.testing.assert_allclose(changed[FIRING_RATE]["rate"], spikes.mean((2, 3)))
        _, changed = layer.apply(variables, xs, temporal_gradient=True, mutable=["membrane"])
        assert FIRING_RATE not in changed and FIRING_RATE not in variables

    def test_half_precision_spikes_and_single_precision_membrane(self):
        xs = jnp.ones((2, 3, 4), jnp.bfloat16)
        layer = LIF()
        variables = layer.init(jax.random.key(0), xs, temporal_gradient=True)
        spikes, changed = layer.apply(variables, xs, temporal_gradient=True, mutable=["membrane"])
        assert spikes.dtype == jnp.bfloat16 and changed["membrane"]["v"].dtype == jnp.float32


class TestStepBatchNorm:
    xs = np.random.default_rng(0).normal(3, 2, (6, 4, 5, 5, 3))

    def layer(self, **kwargs):
        model = StepBatchNorm(**kwargs)
        variables = model.init(jax.random.key(0), self.xs, train=True)
        rng = np.random.default_rng(1)
        params = {"scale": jnp.asarray(rng.normal(size=3)), "bias": jnp.asarray(rng.normal(size=3))}
        return model, {**variables, "params": params}

    def test_statistics_of_every_step_and_running_ones(self, x64):
        model, variables = self.layer()
        y, end = blocks(model, variables, self.xs, 1, train=True)
        mean, var = np.zeros(3), np.ones(3)
        for x, got in zip(self.xs, y, strict=True):
            m, v = x.mean((0, 1, 2)), x.var((0, 1, 2))
            expected = (x - m) / np.sqrt(v + 1e-5) * variables["params"]["scale"] + variables["params"][
                "bias"
            ]
            np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
            mean, var = 0.9 * mean + 0.1 * m, 0.9 * var + 0.1 * x.var((0, 1, 2), ddof=1)
        np.testing.assert_allclose(end["batch_stats"]["mean"], mean, rtol=1e-12)
        np.testing.assert_allclose(end["batch_stats"]["var"], var, rtol=1e-12)
        # In evaluation the running statistics serve every step and stay as they are.
        y, after = blocks(model, end, self.xs, 3, train=False)
        expected = (self.xs - mean) / np.sqrt(var + 1e-5)
        expected = expected * variables["params"]["scale"] + variables["params"]["bias"]
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
        jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], end["batch_stats"])

    @pytest.mark.parametrize("size", [2, 4, 6])
    def test_every_block_size_gives_the_same(self, x64, size):
        model, variables = self.layer(momentum=0.7)
        expected, end = blocks(model, variables, self.xs, 1, train=True)
        got, got_end = blocks(model, variables, self.xs, size, train=True)
        np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-13)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), got_end, end)

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

        a, b = (jax.grad(f, (0, 1))(variables["params"], x) for f in (ours, theirs))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), a, b)

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
    masked = lambda key, chunk: run(functional.applier(DropNet(), key=key), {}, {}, xs, chunk=chunk)[0]
    for chunk in (1, 3, 7):  # 3 leaves a shorter block
        y = masked(jax.random.key(0), chunk)
        np.testing.assert_array_equal(y, masked(jax.random.key(0), 1))
        assert (y == y[0]).all() and set(np.unique(y)) == {0, 2}
        assert 0.4 < (y[0] == 0).mean() < 0.6
    assert (y[0, 0] != y[0, 1]).any()  # a mask for every sample
    assert (masked(jax.random.key(1), 1) != y).any()
    off = functional.applier(DropNet(), train=False)
    np.testing.assert_array_equal(run(off, {}, {}, xs)[0], xs)


def test_pooling_of_blocks():
    xs = jax.random.normal(jax.random.key(0), (2, 3, 6, 4, 5))
    windows = np.asarray(xs).reshape(2, 3, 3, 2, 2, 2, 5)
    np.testing.assert_allclose(avg_pool(xs, 2), windows.mean((3, 5)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(max_pool(xs, 2), windows.max((3, 5)))


def test_convolution_of_blocks_is_that_of_every_step():
    xs = jax.random.normal(jax.random.key(0), (3, 2, 6, 6, 4))
    layer = Conv(5, (3, 3), strides=2, padding=1)
    params = layer.init(jax.random.key(1), xs)
    expected = jnp.stack([nn.Conv(5, (3, 3), strides=2, padding=1).apply(params, x) for x in xs])
    np.testing.assert_allclose(layer.apply(params, xs), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "shape", "axes"),
    [(MLP((4,)), (3, 5), "T, B, features"), (ConvNet((4,)), (3, 6, 6, 2), "T, B, H, W, C")],
)
def test_wrong_inputs_of_networks(model, shape, axes):
    with pytest.raises(ValueError, match=rf"\[{axes}\], got shape \(1, 3"):
        functional.init(model, jax.random.key(0), jnp.ones((*shape, 1)))
    with pytest.raises(ValueError, match="floating point inputs, got uint8"):
        kwargs = {"train": False, "temporal_gradient": False}
        model.init(jax.random.key(0), jnp.ones((2, *shape), jnp.uint8), **kwargs)


def test_membranes_at_rest():
    model = ConvNet((4,), neuron=Neuron(v_reset=-1.0))
    params, state = functional.init(model, jax.random.key(0), jnp.ones((3, 6, 6, 2)))
    _, state = run(functional.applier(model), params, state, jnp.ones((2, 3, 6, 6, 2)))
    fresh = functional.at_rest(model, state, jnp.ones((8, 6, 6, 2)))
    v = fresh["membrane"]["LIF_0"]["v"]
    assert v.shape == (8, 6, 6, 4) and (v == -1).all()
    assert (state["membrane"]["LIF_0"]["v"] != -1).any()
    jax.tree.map(np.testing.assert_array_equal, fresh["batch_stats"], state["batch_stats"])


def test_event_counts_become_floating_point_a_block_at_a_time():
    model = ConvNet((4,))
    counts = jnp.asarray(np.random.default_rng(0).integers(0, 4, (3, 2, 6, 6, 2)), jnp.uint8)
    params, state = functional.init(model, jax.random.key(0), counts[0])
    apply = functional.applier(model)
    got, _ = run(apply, params, state, counts)
    expected, _ = run(apply, params, state, counts.astype(jnp.float32))
    np.testing.assert_array_equal(got, expected)
