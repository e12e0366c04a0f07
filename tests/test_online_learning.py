"""Updates at every block: what a loop with optax does, flat in memory, and resumed with the same bits."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sltt_jax import PerStep, bptt, online, ottt, sltt, sltt_k, synapse, tbptt
from sltt_jax.neurons import Neuron, lif
from tests.common.nets import assert_close, squared_error

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")

T, BATCH, N = 12, 3, 6
NEURON = Neuron(tau=2.0, v_threshold=0.5)
rng = np.random.default_rng(0)
XS, TARGETS = rng.normal(size=(T, BATCH, 4)), rng.uniform(size=(T, BATCH, N))
PARAMS = {"w": rng.normal(size=(4, N)), "b": np.zeros(N)}
REST = np.zeros((BATCH, N))


def apply(p, v, xs, *, temporal_gradient):
    current = synapse(lambda xs, w: xs @ w, xs, p["w"], temporal_gradient=temporal_gradient)
    current = current + jax.lax.broadcast_to_rank(p["b"], 3)
    v, spikes = lif(v, current, NEURON, temporal_gradient=temporal_gradient)
    return spikes, v


def run(rule, optimizer, state=None, blocks=None):
    start, update = online(rule, apply, squared_error, optimizer)
    update, C, losses = jax.jit(update), rule.block_steps, []
    state = start(PARAMS, REST, XS[:C]) if state is None else state
    for i in range(T // C) if blocks is None else blocks:
        here = slice(i * C, (i + 1) * C)
        state, loss = update(state, XS[here], PerStep(TARGETS[here]))
        losses.append(loss)
    return state, np.concatenate(losses)


@pytest.mark.parametrize("rule", [sltt(), sltt(3), ottt(0.5), ottt(0.5, 3)], ids=str)
def test_it_is_a_loop_with_optax(rule):
    """Whose gradients are those of a network of one block that starts where the last one ended."""
    optimizer = optax.sgd(0.2, momentum=0.9)
    found, losses = run(rule, optimizer)
    params, opt_state, v, a = PARAMS, optimizer.init(PARAMS), REST, np.zeros((BATCH, 4))
    decay = getattr(rule, "decay", 0.0)
    by_hand, C = [], rule.block_steps
    for i in range(0, T, C):
        grads = jax.tree.map(np.zeros_like, PARAMS)
        for x, target in zip(XS[i : i + C], TARGETS[i : i + C], strict=True):
            a = decay * a + x
            u = 0.5 * v + x @ np.asarray(params["w"]) + np.asarray(params["b"])
            s = (u >= 0.5) * 1.0
            v = u - 0.5 * s
            by_hand.append(np.mean((s - target) ** 2))
            e = 2 * (s - target) / s.size * np.maximum(0, 1 - np.abs(u - 0.5)) / C
            grads = {"w": grads["w"] + a.T @ e, "b": grads["b"] + e.sum(0)}
        changes, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, changes)
    np.testing.assert_allclose(losses, by_hand, rtol=1e-12)
    assert_close(found.params, params)
    assert np.abs(np.asarray(params["w"]) - PARAMS["w"]).max() > 0.01


def test_a_saved_run_is_resumed_with_the_same_bits():
    rule, optimizer = ottt(0.5, 3), optax.adam(0.01)
    whole, losses = run(rule, optimizer)
    half, first = run(rule, optimizer, blocks=range(2))
    kept = jax.tree.map(jnp.asarray, jax.device_get(half))  # as from a checkpoint
    rest, last = run(rule, optimizer, kept, blocks=range(2, 4))
    chex.assert_trees_all_equal(rest, whole)
    chex.assert_trees_all_equal(np.concatenate([first, last]), losses)


@pytest.mark.parametrize("rule", [sltt(3), ottt(0.5, 3), tbptt(3)], ids=str)
def test_what_an_update_takes_the_memory_of_is_its_own(rule):
    """Also where the caller has one array twice, and where the optimizer keeps the parameters themselves."""
    params, rest = jax.tree.map(jnp.asarray, PARAMS), jnp.asarray(REST)

    def two(p, state, xs, *, temporal_gradient):
        outputs, v = apply(p, state[0], xs, temporal_gradient=temporal_gradient)
        return outputs, (v, state[1] + 1)

    to_the_first = lambda grads, first, p: (jax.tree.map(lambda g, f, p: f - p - g, grads, first, p), first)
    optimizer = optax.GradientTransformation(lambda params: params, to_the_first)
    start, update = online(rule, two, squared_error, optimizer)
    donated = jax.jit(update, donate_argnums=0)
    found = donated(start(params, (rest, rest), XS[:3]), XS[:3], PerStep(TARGETS[:3]))
    expected = jax.jit(update)(start(params, (rest, rest), XS[:3]), XS[:3], PerStep(TARGETS[:3]))
    chex.assert_trees_all_equal(found, expected)
    chex.assert_trees_all_equal((params, rest), (PARAMS, REST))


def test_what_it_refuses():
    with pytest.raises(ValueError, match=r"sltt_k\(1\) goes backward at some .* use sltt or ottt"):
        online(sltt_k(1), apply, squared_error, optax.sgd(0.1))
    with pytest.raises(
        ValueError, match=r"bptt needs all time steps at once and cannot learn online; use tbptt"
    ):
        online(bptt(), apply, squared_error, optax.sgd(0.1))
    start, update = online(sltt(3), apply, squared_error, optax.sgd(0.1))
    with pytest.raises(
        ValueError, match=r"the target \(3, 3, 6\) has a time axis.*PerStep\(target\) is one of each"
    ):
        update(start(PARAMS, REST, XS[:3]), XS[:3], TARGETS[:3])
    with pytest.raises(ValueError, match=r"PerStep holds .* has 4 time steps and the inputs T=3"):
        update(start(PARAMS, REST, XS[:3]), XS[:3], PerStep(TARGETS[:4]))
    with pytest.raises(ValueError, match=r"a block of sltt\(3\) has 3 steps, got 2"):
        update(start(PARAMS, REST, XS[:3]), XS[:2], PerStep(TARGETS[:2]))


@pytest.mark.slow
def test_a_stream_of_100_000_steps_at_constant_memory():
    """What is on the device after each tenth of it, and what a process holds after the first tenth."""
    import resource

    start, update = online(sltt(20), apply, squared_error, optax.sgd(0.01))
    update = jax.jit(update, donate_argnums=0)
    block = np.tile(XS, (2, 1, 1))[:20]
    target = PerStep(np.tile(TARGETS, (2, 1, 1))[:20])
    state = start(jax.tree.map(jnp.asarray, PARAMS), jnp.asarray(REST), block)
    on_device, process = [], []
    for i in range(5_000):
        state, losses = update(state, block, target)
        if i % 500 == 499:
            losses.block_until_ready()
            on_device.append(sum(x.nbytes for x in jax.live_arrays()))
            process.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert len(set(on_device)) == 1
    assert process[-1] - process[0] < 20_000, process  # kilobytes
    assert bool(
        functools.reduce(jnp.logical_and, [jnp.isfinite(p).all() for p in jax.tree.leaves(state.params)])
    )
