"""Sums over time, batch and space are at least float32, whatever parameters and outputs are."""

import chex
import jax
import jax.numpy as jnp
import pytest

from sltt_jax import bptt, functional, losses, sltt, sltt_k, stream, surrogate, tbptt
from sltt_jax.layers import LIF, Conv, Dense, avg_pool
from sltt_jax.models import ConvNet, NFResNet34
from sltt_jax.neurons import Neuron, lif

pytestmark = pytest.mark.usefixtures("quick_compile")

T = 1000
RULES = [sltt(), sltt(50), sltt_k(T, draw="first"), tbptt(4), bptt(), bptt(50), bptt(remat=True)]


def weighted(params, state, xs, *, temporal_gradient):
    """A network of one weight, whose gradient is the mean of the inputs."""
    del temporal_gradient
    return xs * params, state


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_gradients_are_summed_in_float32(rule):
    """In bfloat16 a sum of ones ends at 256, for the next one is less than half of its spacing."""
    f = jax.jit(rule.value_and_grad(weighted, lambda out, target: out.mean() - target))
    weight, ones = jnp.asarray(0.5, jnp.bfloat16), jnp.ones((T, 2), jnp.bfloat16)
    (loss, aux), grad = f(weight, (), ones, jnp.asarray(0.25, jnp.bfloat16))
    assert grad.dtype == loss.dtype == aux.losses.dtype == jnp.float32
    assert abs(float(grad) - 1) < 1e-5 and loss == 0.25
    chex.assert_trees_all_equal(aux.outputs, jnp.full(2, T / 2, jnp.float32))


def test_a_stream_is_summed_in_float32():
    f = stream(sltt(50), weighted, lambda out, target: out.mean() - target)
    blocks = (jnp.ones((50, 2), jnp.bfloat16) for _ in range(T // 50))
    _, grad = f(jnp.asarray(0.5, jnp.bfloat16), (), blocks, 0.25, T=T)
    assert grad.dtype == jnp.float32 and abs(float(grad) - 1) < 1e-5


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int8, jnp.uint8, bool])
@pytest.mark.parametrize("rule", [sltt(), sltt(60), bptt()], ids=str)
def test_spikes_are_counted_in_float32(rule, dtype):
    def apply(params, state, xs, *, temporal_gradient):
        del temporal_gradient
        return (jnp.broadcast_to(xs + params, (len(xs), 2)) > 0).astype(dtype), state

    f = rule.value_and_grad(apply, lambda out, target: jnp.float32(0) * target)
    (_, aux), _ = jax.jit(f)(jnp.zeros(()), (), jnp.ones((600, 1)), 1.0)
    chex.assert_trees_all_equal(aux.outputs, jnp.full(2, 600, jnp.float32))


@pytest.mark.parametrize("layer", [Dense(3, dtype=jnp.bfloat16), Conv(3, (1, 1), dtype=jnp.bfloat16)])
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_gradient_of_a_bias_is_summed_in_float32(layer, param_dtype):
    layer = layer.clone(param_dtype=param_dtype)
    xs = jnp.ones((4, 16, 16, 16, 2), jnp.bfloat16)  # 16,384 entries
    params = jax.jit(layer.init)(jax.random.key(0), xs)
    grads = jax.jit(jax.grad(lambda p: layer.apply(p, xs).astype(jnp.float32).sum()))(params)
    chex.assert_trees_all_equal(grads["params"]["bias"], jnp.full(3, 16384, param_dtype))
    # The product itself is in half precision.
    plain = layer.clone(use_bias=False)
    kernel = {"params": {"kernel": params["params"]["kernel"]}}
    assert plain.apply(kernel, xs).dtype == jnp.bfloat16


def test_average_pooling_in_half_precision():
    xs = jnp.full((1, 1, 32, 32, 1), 1.0, jnp.bfloat16)  # a sum of 1,024 ones
    pooled = avg_pool(xs, 32)
    assert pooled.dtype == jnp.float32 and pooled.item() == 1


@pytest.mark.slow
@pytest.mark.parametrize("rule", [sltt(2), bptt()], ids=str)
def test_kernels_may_be_cast_before_the_first_step(rule):
    """Gradients are the same numbers, in float32."""
    model = ConvNet((4, 8), dtype=jnp.bfloat16)
    xs = jax.random.uniform(jax.random.key(0), (4, 3, 8, 8, 2))
    params, state = functional.init(model, jax.random.key(1), xs[0])
    cast = functional.cast_kernels(model, params)
    assert cast["Conv_0"]["kernel"].dtype == jnp.bfloat16
    assert cast["StepBatchNorm_0"]["scale"].dtype == cast["Dense_0"]["bias"].dtype == jnp.float32
    f = jax.jit(rule.value_and_grad(functional.applier(model), losses.cross_entropy))
    expected, found = (f(p, state, xs, jnp.asarray([1, 2, 3]))[1] for p in (params, cast))
    chex.assert_trees_all_equal(found, expected)
    assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(found))
    # Its kernels are standardised in float32 first.
    params = {"conv1": {"kernel": jnp.ones(2)}}
    assert functional.cast_kernels(NFResNet34(dtype=jnp.bfloat16), params) is params


def test_the_surrogate_derivative_is_kept_in_half_precision():
    """What is not rounded are the membranes, and the spikes have no digits to lose."""
    xs = jax.random.uniform(jax.random.key(0), (5, 40), maxval=2.0)
    exact, half = LIF(Neuron(surrogate=surrogate.atan())), LIF(
        Neuron(surrogate=surrogate.atan()), dtype=jnp.bfloat16
    )  # fmt: skip
    variables = exact.init(jax.random.key(0), xs, temporal_gradient=True)

    def both(layer):
        f = lambda xs: layer.apply(variables, xs, temporal_gradient=False, mutable=True)
        spikes, backward, changed = jax.vjp(f, xs, has_aux=True)
        return spikes, changed["membrane"]["v"], backward(jnp.ones_like(spikes))[0]

    expected, found = jax.jit(lambda: both(exact))(), jax.jit(lambda: both(half))()
    assert found[0].dtype == jnp.bfloat16
    chex.assert_trees_all_equal((found[0].astype(jnp.float32), found[1]), expected[:2])
    assert 0 < jnp.abs(found[2] / expected[2] - 1).max() < 2**-8


NUMBER_RULES = [bptt(), bptt(2), bptt(remat=True), bptt(4, bits=True), sltt(2), sltt_k(4), tbptt(4)]


@pytest.mark.parametrize(
    "dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow), jnp.float32]
)
def test_a_python_number_among_the_parameters_widens_nothing(dtype, x64):
    """As in `Neuron(tau=3.0)`; in double precision float32 is a narrow type too."""

    def apply(params, v, xs, *, temporal_gradient):
        v, s = lif(v, xs @ params["w"], params["neuron"], temporal_gradient=temporal_gradient)
        assert s.dtype == dtype
        return s @ params["r"], v

    normal = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape, dtype)
    xs, labels = 2 * normal(0, 4, 3, 5), jnp.arange(3)
    params = {"w": normal(1, 5, 8), "r": normal(2, 8, 3), "neuron": Neuron(tau=3.0)}
    found = {}
    for rule in NUMBER_RULES:
        f = jax.jit(rule.value_and_grad(apply, losses.cross_entropy))
        (loss, aux), grads = f(params, jnp.zeros((3, 8), dtype), xs, labels, jax.random.key(3))
        assert aux.state.dtype == dtype and grads["neuron"].tau.dtype == jnp.float64
        found[rule] = loss, grads
    assert abs(found[bptt()][1]["neuron"].tau) > 1e-4
    near = {"rtol": 4 * float(jnp.finfo(dtype).eps), "atol": 4 * float(jnp.finfo(dtype).eps)}
    for rule in (bptt(2), bptt(remat=True), bptt(4, bits=True), tbptt(4)):
        chex.assert_trees_all_close(found[rule], found[bptt()], **near)
    chex.assert_trees_all_close(found[sltt_k(4)], found[sltt(2)], **near)
    assert abs(found[sltt(2)][1]["neuron"].tau - found[bptt()][1]["neuron"].tau) > 1e-2
