"""Cells and products that close over parameters, in place of being handed them, under every rule.

The gradients are held against a loop over time that is written out here.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import Neuron, bptt, lif, lif_step, ottt, over_time, recurrent, sltt, sltt_k, synapse, tbptt
from sltt_jax.analysis import check_apply
from tests.common.nets import assert_close, difference, squared_error

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")

T, BATCH, N = 7, 4, 9
THRESHOLD = 0.5
EVERY = np.full(T, True)
KEY = jax.random.key(2)


def adaptive_step(p, state, x):
    """A cell that has its input weights, a lateral matrix and its time constants from `p`."""
    v, a, s = state
    a = p["keep_a"][None] * a + s @ p["lateral"]
    v, s = lif_step(v, x @ p["w"] - a, Neuron(tau=p["tau"][None], v_threshold=THRESHOLD))
    return (v, a, s), s


def closing(p, state, xs, *, temporal_gradient):
    """Two layers, both of which close over their parameters; the second has lateral weights around it."""
    first, second = state
    block = over_time(functools.partial(adaptive_step, p))
    first, xs = block(first, xs, temporal_gradient=temporal_gradient)
    inner = lambda v, x: lif_step(v, x + p["bias"][None], Neuron(tau=p["tau2"], v_threshold=THRESHOLD))
    block = over_time(recurrent(inner))
    second, xs = block(second, xs @ p["k"], p["lateral2"], temporal_gradient=temporal_gradient)
    return xs, (first, second)


def written_out(p, state, xs, target, cut, weights):
    """The loss of the same network, step after step; where `cut[t]` the state after step t is a constant."""

    @jax.custom_jvp
    def fire(x):
        return (x >= 0).astype(x.dtype)

    fire.defjvp(lambda x, dx: (fire(x[0]), jnp.maximum(0, 1 - jnp.abs(x[0])) * dx[0]))
    (v, a, s), (v2, s2) = state
    total, live = 0.0, []
    for t, x in enumerate(xs):
        a = p["keep_a"] * a + s @ p["lateral"]
        u = (1 - 1 / p["tau"]) * v + x @ p["w"] - a
        s = fire(u - THRESHOLD)
        v = u - THRESHOLD * s
        u = (1 - 1 / p["tau2"]) * v2 + s @ p["k"] + s2 @ p["lateral2"] + p["bias"]
        s2 = fire(u - THRESHOLD)
        v2 = u - THRESHOLD * s2
        total += weights[t] * jnp.mean((s2 - target) ** 2)
        live += [s.mean(), s2.mean()]
        stop = lambda x: jnp.where(cut[t], jax.lax.stop_gradient(x), x)  # noqa: B023
        v, a, s, v2, s2 = (stop(x) for x in (v, a, s, v2, s2))
    return total, jnp.stack(live)


@functools.cache
def case():
    rng = np.random.default_rng(3)
    normal = lambda *shape, scale: jnp.asarray(scale * rng.normal(size=shape))
    params = {
        "w": normal(5, N, scale=0.5),
        "lateral": normal(N, N, scale=0.3),
        "keep_a": jnp.asarray(rng.uniform(0.3, 0.9, N)),
        "tau": jnp.asarray(rng.uniform(1.5, 4, N)),
        "k": normal(N, N, scale=0.5),
        "lateral2": normal(N, N, scale=0.3),
        "tau2": jnp.asarray(2.5),
        "bias": normal(N, scale=0.2),
    }
    zero = jnp.zeros((BATCH, N))
    return params, ((zero, zero, zero), (zero, zero)), normal(T, BATCH, 5, scale=1), normal(BATCH, N, scale=1)


@functools.cache
def by_hand():
    params, state, xs, target = case()
    with jax.numpy_rank_promotion("allow"):
        f = jax.jit(jax.value_and_grad(written_out, has_aux=True))
        return lambda cut, weights: f(params, state, xs, target, jnp.asarray(cut), jnp.asarray(weights))


@functools.cache
def under(rule):
    params, state, xs, target = case()
    return jax.jit(rule.value_and_grad(closing, squared_error))(params, state, xs, target, KEY)


CUTS = {sltt(chunk): EVERY for chunk in (1, 2, 3, T)} | {bptt(): ~EVERY, bptt(3): ~EVERY}
CUTS |= {tbptt(2): np.arange(1, T + 1) % 2 == 0}


@pytest.mark.parametrize("rule", [*CUTS, sltt_k(3)], ids=str)
def test_gradient_is_that_of_the_loop_written_out(rule):
    backward = rule.plan(T, KEY).backward if isinstance(rule, sltt_k) else EVERY
    with jax.numpy_rank_promotion("allow"):
        (loss, live), grads = by_hand()(CUTS.get(rule, EVERY), backward / T)
    (value, _), found = under(rule)
    if not isinstance(rule, sltt_k):
        np.testing.assert_allclose(value, loss, rtol=1e-12)
    assert_close(found, grads)
    assert all(np.abs(g).max() > 1e-6 for g in grads.values())
    assert 0.02 < live.mean() < 0.6


def test_rules_that_must_differ_do():
    exact, cut, window = (under(rule)[1] for rule in (bptt(), sltt(), tbptt(2)))
    assert (
        min(max(difference(a, b).values()) for a, b in ((exact, cut), (exact, window), (cut, window))) > 0.01
    )


@pytest.mark.slow
def test_the_check_passes_it():
    check_apply(closing, *case()[:3])


def test_the_state_after_a_block_is_a_constant():
    params, state, xs, _ = case()

    def end(p, temporal_gradient):
        ends = closing(p, state, xs, temporal_gradient=temporal_gradient)[1]
        return sum(leaf.sum() for leaf in jax.tree.leaves(ends))

    largest = lambda g: max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(g))
    assert largest(jax.grad(end)(params, False)) == 0 < largest(jax.grad(end)(params, True))


def test_memory_is_that_of_parameters_that_are_handed_in():
    """The loop without gradients keeps nothing for a backward pass."""
    params, _, xs, target = case()
    state = jnp.zeros((BATCH, N))

    def network(block):
        def apply(p, v, xs, *, temporal_gradient):
            v, s = block(p)(v, xs, temporal_gradient)
            return s, v

        return apply

    step = lambda v, x, w: lif_step(v, x @ w, Neuron())
    handed = network(lambda p: lambda v, xs, cut: over_time(step)(v, xs, p["w"], temporal_gradient=cut))
    closed = network(
        lambda p: lambda v, xs, cut: over_time(lambda v, x: step(v, x, p["w"]))(v, xs, temporal_gradient=cut)
    )
    f = lambda apply: jax.jit(sltt(T).value_and_grad(apply, squared_error))
    bytes_of = lambda apply: f(apply).lower(params, state, xs, target).compile().memory_analysis()
    assert bytes_of(closed).temp_size_in_bytes <= bytes_of(handed).temp_size_in_bytes


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_product_with_traces_may_close_over_parameters(chunk):
    """What it closes over learns as under SLTT, its weights by their trace."""
    params, _, xs, target = case()
    params = {"w": params["w"], "gain": 1 + params["bias"], "k": params["k"]}
    state = jnp.zeros((BATCH, N)), jnp.zeros((BATCH, N))

    def network(of_product):
        def apply(p, state, xs, *, temporal_gradient):
            how = {"temporal_gradient": temporal_gradient}
            v, s = lif(state[0], of_product(p, xs, how), Neuron(v_threshold=THRESHOLD), **how)
            s = synapse(lambda x, w: x @ w, s, p["k"], **how)
            v2, s = lif(state[1], s, Neuron(v_threshold=THRESHOLD), **how)
            return s, (v, v2)

        return apply

    def handed(p, xs, how):
        return synapse(
            lambda x, w: x @ (w["w"] * w["gain"][None]), xs, {"w": p["w"], "gain": p["gain"]}, **how
        )

    def closed(p, xs, how):
        return synapse(lambda x, w: x @ (w * p["gain"][None]), xs, p["w"], **how)

    gradient = lambda rule, product: jax.jit(rule.value_and_grad(network(product), squared_error))(
        params, state, xs, target
    )[1]
    found, by_traces = gradient(ottt(0.6, chunk), closed), gradient(ottt(0.6, chunk), handed)
    spatial = gradient(sltt(), closed)
    assert_close({k: found[k] for k in ("w", "k")}, {k: by_traces[k] for k in ("w", "k")})
    np.testing.assert_allclose(found["gain"], spatial["gain"], rtol=1e-10)
    assert min(difference(by_traces, spatial).values()) > 0.01
