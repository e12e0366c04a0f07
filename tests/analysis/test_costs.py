"""Memory and operations of compiled updates; neither is measured with a clock."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import pytest

from sltt_jax import functional, losses
from sltt_jax.analysis import cost, cost_over_time, flops, growth, program_cost
from sltt_jax.blocks import Repeat
from sltt_jax.models import MLP, ConvNet
from sltt_jax.rules import bptt, sltt, sltt_k, tbptt
from sltt_jax.streaming import stream

pytestmark = pytest.mark.usefixtures("quick_codegen")

BATCH = 8
LOSS = losses.classification()
MODELS = {"mlp": (MLP((64, 64)), (32,)), "convnet": (ConvNet((8, 16)), (12, 12, 2))}


def arguments(name, T, static=True):
    """Parameters, state, inputs and labels: shapes and types only."""
    model, shape = MODELS[name]
    x = jax.ShapeDtypeStruct((BATCH, *shape), jnp.float32)
    params, state = jax.eval_shape(partial(functional.init, model), jax.random.key(0), x)
    inputs = Repeat(x, T) if static else jax.ShapeDtypeStruct((T, *x.shape), x.dtype)
    return params, state, inputs, jax.ShapeDtypeStruct((BATCH,), jnp.int32)


@cache
def trace(name, rule, T, static=True):
    f = jax.jit(rule.value_and_grad(functional.applier(MODELS[name][0]), LOSS))
    return f.trace(*arguments(name, T, static), jax.random.key(0))


def cost_of(name, rule, T):
    return cost(functional.applier(MODELS[name][0]), LOSS, rule, *arguments(name, T))


@cache
def temp_bytes(name, rule, T, static=True):
    return trace(name, rule, T, static).lower().compile().memory_analysis().temp_size_in_bytes


def either(name, rule, *, static, **kwargs):
    """A case: a network, a rule, and whether its input is a `Repeat`."""
    return pytest.param(name, rule, static, id=f"{name}-{rule}-{'repeat' if static else 'frames'}", **kwargs)


@pytest.mark.parametrize(
    ("name", "rule", "static"),
    [
        either("mlp", sltt(), static=True),
        either("mlp", sltt(), static=False, marks=pytest.mark.slow),
        either("mlp", sltt_k(1), static=True, marks=pytest.mark.slow),
        either("mlp", sltt_k(1), static=False),
        either("convnet", sltt(), static=True, marks=pytest.mark.slow),
        either("convnet", sltt_k(1), static=False, marks=pytest.mark.slow),
        either("convnet", sltt(), static=False, marks=pytest.mark.slow),
        either("convnet", sltt_k(1), static=True, marks=pytest.mark.slow),
    ],
)
def test_memory_of_sltt_is_flat_in_time(name, rule, static):
    at = {T: temp_bytes(name, rule, T, static) for T in (4, 64)}
    assert at[64] <= 1.01 * at[4], at
    assert at[4] > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "convnet"])
def test_memory_of_bptt_grows_at_least_linearly(name):
    at = {T: temp_bytes(name, bptt(), T) for T in (4, 8, 64)}
    assert (at[64] - at[8]) / (64 - 8) >= 0.95 * (at[8] - at[4]) / (8 - 4) > 1000, at
    assert at[64] > 5 * temp_bytes(name, sltt(), 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rule", "static"),
    [
        either("mlp", tbptt(4), static=True),
        either("convnet", tbptt(4), static=True),
        # 8 and 68 steps leave a block of two at the end.
        either("convnet", sltt(chunk=3), static=False),
        *(
            either("convnet", rule, static=static)
            for rule, static in (
                (sltt(chunk=3), True), (sltt(chunk=4), True), (sltt(chunk=4), False), (tbptt(4), False)
            )
        ),
    ],
)  # fmt: skip
def test_memory_of_blocks_grows_with_the_block_and_not_with_time(name, rule, static):
    at = {T: temp_bytes(name, rule, T, static) for T in (8, 68)}
    assert at[68] <= 1.01 * at[8]
    assert at[68] < 0.5 * temp_bytes(name, bptt(), 64)
    assert at[8] > 1.5 * temp_bytes(name, sltt(), 4)  # which is that of any T


def test_remat_makes_bptt_smaller():
    assert temp_bytes("mlp", bptt(remat=True), 64) < 0.7 * temp_bytes("mlp", bptt(), 64)


def test_memory_of_the_stream_driver_has_no_time_in_it():
    """Its step is one program for a stream of any length; test_streaming counts what is carried."""
    model, shape = MODELS["mlp"]
    x = jnp.zeros((2, BATCH, *shape))
    params, state = functional.init(model, jax.random.key(0, impl="rbg"), x[0])
    compiles = []
    apply = functional.applier(model)

    def counted(*args, **kwargs):
        compiles.append(1)
        return apply(*args, **kwargs)

    f = stream(sltt(chunk=2), counted, LOSS)
    labels = jnp.zeros(BATCH, int)
    f(params, state, [x] * 4, labels, T=8)
    once = len(compiles)
    f(params, state, [x] * 32, labels, T=64)
    # Only the shape of the outputs is asked for anew.
    assert len(compiles) == once + 1


@pytest.mark.parametrize("name", MODELS)
def test_flops_are_those_of_the_unrolled_program(name):
    """XLA counts a program without loops right; elementwise work is what it counts beside ours."""
    T = 4
    traced = trace(name, sltt(chunk=T), T)
    compiled = traced.lower().compile()
    assert " while(" not in compiled.as_text()
    assert 0.8 < flops(traced) / compiled.cost_analysis()["flops"] < 1.15
    assert flops(trace(name, sltt(), T)) == flops(traced)
    assert flops(trace(name, sltt(), 3 * T)) == 3 * flops(traced)


def test_flops_of_a_dense_network_by_hand():
    T = 6
    sizes = 32 * 64, 64 * 64, 64 * 10
    forward = 2 * BATCH * T * sum(sizes)
    backward = 2 * BATCH * T * (2 * sum(sizes) - sizes[0])  # no gradient to the input
    assert flops(trace("mlp", sltt(), T)) == forward + backward
    for k in (1, 3, 6):
        traced = trace("mlp", sltt_k(k), T)
        assert flops(traced, backward_share=k / T) == pytest.approx(forward + backward * k / T, rel=1e-12)


@pytest.mark.slow
def test_flops_of_sltt_k_fall_with_k():
    T = 8
    count = {k: flops(trace("convnet", sltt_k(k), T), backward_share=k / T) for k in (1, 2, 4, 8)}
    assert count[8] == flops(trace("convnet", sltt(), T))
    per_step = (count[8] - count[1]) / 7
    for k in (2, 4):
        assert count[k] == pytest.approx(count[1] + (k - 1) * per_step, rel=1e-12)
    assert count[1] < 0.5 * count[8]


def test_flops_of_loops_and_branches():
    w = jnp.ones((4, 4))
    product = 2 * 4**3
    assert flops(jax.jit(lambda w: jax.lax.fori_loop(0, 5, lambda i, x: x @ w, w)).trace(w)) == 5 * product
    branch = lambda w: jax.lax.cond(w[0, 0] > 0, lambda w: w @ w @ w, lambda w: w @ w, w)
    assert flops(jax.jit(branch).trace(w)) == 2 * product
    until = lambda w: jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ w, w)
    with pytest.raises(ValueError, match="while loop of unknown length"):
        flops(jax.jit(until).trace(w))
    with pytest.raises(ValueError, match=r"backward_share must be in 0..1, got 2"):
        flops(jax.jit(branch).trace(w), backward_share=2)
    unused = lambda w: (w @ w, w + 1)[1]
    assert flops(jax.jit(unused).trace(w)) == 0


@pytest.mark.slow
def test_cost_of_a_dense_network_by_hand():
    """What goes in, what comes out, and what is multiplied, under every rule alike."""
    T, weights, hidden = 6, 32 * 64 + 64 * 64 + 64 * 10, 64 + 64
    numbers_in = weights + hidden + 10 + BATCH * (hidden + 32 + 1)
    numbers_out = weights + hidden + 10 + BATCH * (hidden + 10) + T + 1  # gradient, state, outputs, losses
    forward = 2 * BATCH * T * weights
    for rule in (bptt(), tbptt(2), sltt(), sltt(chunk=3)):
        backward = 2 * BATCH * T * (2 * weights - 32 * 64)
        if rule == bptt():  # JAX takes the first layer of an input that never changes out of the loop
            backward -= 2 * BATCH * (T - 1) * 32 * 64
        found = cost_of("mlp", rule, T)
        # A CPU counts the table of the 11 outputs too: 6 of gradient, 2 membranes, sum of outputs, 2 losses.
        assert found.argument_bytes == 4 * numbers_in
        assert found.output_bytes - 4 * numbers_out in (0, 8 * 11)
        assert found.aliased_bytes == 0
        assert found.total_bytes == found.argument_bytes + found.output_bytes + found.temp_bytes
        assert (found.forward_flops, found.backward_flops) == (forward, backward)
        assert found.flops == forward + backward
        assert rule != sltt() or found.temp_bytes == temp_bytes("mlp", rule, T)
        assert found.bytes_accessed > found.argument_bytes and found.compile_seconds > 0
    backward = 2 * BATCH * T * (2 * weights - 32 * 64)
    found = cost_of("mlp", sltt_k(2), T)
    assert found.argument_bytes == 4 * numbers_in + 8  # the key
    assert found.forward_flops == forward and found.backward_flops == pytest.approx(backward * 2 / T)
    assert cost_of("mlp", bptt(remat=True), T).backward_flops > backward


def test_cost_of_shapes_is_the_cost_of_arrays():
    model, shape = MODELS["mlp"]
    x = jnp.ones((BATCH, *shape))
    params, state = functional.init(model, jax.random.key(0, impl="rbg"), x)
    y = jnp.zeros(BATCH, jnp.int32)
    of_arrays = cost(functional.applier(model), LOSS, sltt(), params, state, Repeat(x, 4), y)
    of_shapes = cost_of("mlp", sltt(), 4)
    same = {"compile_seconds": 0}
    assert dataclasses.replace(of_arrays, **same) == dataclasses.replace(of_shapes, **same)


@pytest.mark.slow
def test_growth_with_time():
    model, _ = MODELS["mlp"]
    sample = 4 * BATCH * 32
    for static, of_input in ((True, 0), (False, sample)):
        args = arguments("mlp", 5, static)
        over_time = {
            rule: cost_over_time(functional.applier(model), LOSS, rule, *args, T=(4, 32))
            for rule in (sltt(), bptt())
        }
        assert [list(costs) for costs in over_time.values()] == [[4, 32]] * 2
        flat, grown = (growth(costs) for costs in over_time.values())
        assert flat == {
            "argument_bytes": of_input, "output_bytes": 4, "temp_bytes": 0, "total_bytes": of_input + 4
        }  # fmt: skip
        # Spikes and membranes of two layers, at the least.
        assert grown["temp_bytes"] > 4 * BATCH * (64 + 64) and grown["argument_bytes"] == of_input
    with pytest.raises(ValueError, match=r"two or more numbers of time steps, got T=\[4\]"):
        growth({4: over_time[sltt()][4]})
    with pytest.raises(ValueError, match="T must be a whole number >= 1, got 0"):
        cost_over_time(functional.applier(model), LOSS, sltt(), *args, T=(0, 4))
    with pytest.raises(ValueError, match="chunk=8 is more than the T=4"):
        cost_over_time(functional.applier(model), LOSS, sltt(chunk=8), *args, T=(4, 16))


def test_donated_arguments_count_once():
    update = lambda state, x: (state + x, x.sum())
    args = jnp.zeros((16, 8)), jnp.ones((1, 8))
    found = {}
    for donate in ((), (0,)):
        traced = jax.jit(update, donate_argnums=donate).trace(*args)
        program, found[donate] = program_cost(traced, forward_flops=0)
        assert float(program(jnp.zeros((16, 8)), args[1])[1]) == 8
    state = 4 * 16 * 8
    assert found[()].aliased_bytes == 0 and found[0,].aliased_bytes == state
    assert found[()].total_bytes - found[0,].total_bytes == state
