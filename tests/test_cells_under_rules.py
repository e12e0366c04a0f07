"""Every cell, plain and with lateral weights, and one of a user's own, under every rule.

The gradients are held against a loop over time that is written out here and shares no line with the library.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import (
    Neuron,
    alif_step,
    bptt,
    li_step,
    lif_step,
    over_time,
    recurrent,
    run,
    sltt,
    sltt_k,
    stream,
    synaptic_step,
    tbptt,
)
from sltt_jax.analysis import assert_memory_flat
from sltt_jax.time_constants import tau_of
from tests.common.nets import assert_close, difference, squared_error

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")

T, BATCH, N = 7, 4, 9
V_RESET = -0.1  # of the second layer


def resonate_step(state, x, angle):
    """A cell that the library does not have: a pair that turns, without a reset; its state is a dict."""
    u = jnp.cos(angle) * state["u"] - jnp.sin(angle) * state["w"] + x
    w = jnp.sin(angle) * state["u"] + jnp.cos(angle) * state["w"]
    return {"u": 0.8 * u, "w": 0.8 * w}, Neuron().surrogate(u - 0.5)


def network(lateral):
    """Four layers of cells and one of a user's own, all their time constants learned but that of the LIF."""
    around = recurrent if lateral else lambda step: lambda state, x, w, *params: step(state, x, *params)
    steps = [
        around(alif_step), around(synaptic_step), around(lif_step), over_time(resonate_step), around(li_step)
    ]  # fmt: skip
    blocks = [step if step is steps[3] else over_time(step) for step in steps]

    def apply(p, state, xs, *, temporal_gradient):
        tau = tau_of(p["logit_decay"])
        own = [
            (p["w"][0], Neuron(tau=tau[0], v_threshold=0.4), tau[1], p["beta"]),
            (p["w"][1], Neuron(tau=tau[2], v_threshold=0.4, v_reset=V_RESET), tau[3]),
            (p["w"][2], Neuron(tau=2.5, v_threshold=0.4, detach_reset=True)),
            (p["angle"],),
            (p["w"][3], tau[4]),
        ]
        after = []
        for block, before, k, params in zip(blocks, state, p["k"], own, strict=True):
            end, xs = block(before, xs @ k, *params, temporal_gradient=temporal_gradient)
            after.append(end)
        return xs, after

    return apply


def written_out(p, state, xs, target, cut, weights, lateral):
    """The loss of the same network, step after step; where `cut[t]` the state after step t is a constant."""

    @jax.custom_jvp
    def fire(x):
        return (x >= 0).astype(x.dtype)

    fire.defjvp(lambda x, dx: (fire(x[0]), jnp.maximum(0, 1 - jnp.abs(x[0])) * dx[0]))
    decay = jax.nn.sigmoid(p["logit_decay"])
    v1, a1, s1, v2, i2, s2, v3, s3, u4, w4, v5, s5 = state
    total, outputs = 0.0, 0.0
    for t, x in enumerate(xs):
        side = lambda s, j: s @ p["w"][j] if lateral else 0.0
        u = decay[0] * v1 + x @ p["k"][0] + side(s1, 0)
        a1 = decay[1] * a1 + (1 - decay[1]) * s1
        theta = 0.4 + p["beta"] * a1
        s1 = fire(u - theta)
        v1 = u - theta * s1
        i2 = decay[3] * i2 + s1 @ p["k"][1] + side(s2, 1)
        u = decay[2] * v2 + (1 - decay[2]) * V_RESET + i2
        s2 = fire(u - 0.4)
        v2 = (1 - s2) * u + s2 * V_RESET
        u = (1 - 1 / 2.5) * v3 + s2 @ p["k"][2] + side(s3, 2)
        s3 = fire(u - 0.4)
        v3 = u - 0.4 * jax.lax.stop_gradient(s3)
        cos, sin, x4 = jnp.cos(p["angle"]), jnp.sin(p["angle"]), s3 @ p["k"][3]
        u4, w4 = cos * u4 - sin * w4 + x4, sin * u4 + cos * w4
        s4 = fire(u4 - 0.5)
        u4, w4 = 0.8 * u4, 0.8 * w4
        v5 = decay[4] * v5 + s4 @ p["k"][4] + side(s5, 3)
        s5 = v5
        total += weights[t] * jnp.mean((v5 - target) ** 2)
        outputs += v5
        stop = lambda a: jnp.where(cut[t], jax.lax.stop_gradient(a), a)  # noqa: B023
        v1, a1, s1, v2, i2, s2, v3, s3, u4, w4, v5, s5 = (
            stop(a) for a in (v1, a1, s1, v2, i2, s2, v3, s3, u4, w4, v5, s5)
        )
    return total, (outputs, (s1, s2, s3, s4))


@functools.cache
def case(lateral):
    rng = np.random.default_rng(4)
    normal = lambda *shape, scale=1.0: jnp.asarray(scale * rng.normal(size=shape))
    params = {
        "k": [normal(5, N, scale=0.5), *(normal(N, N, scale=0.5) for _ in range(4))],
        "w": [normal(N, N, scale=0.3) for _ in range(4)],
        "logit_decay": jnp.asarray([1.0, 2.0, 0.5, -0.5, 1.5]),
        "beta": jnp.asarray(0.7),
        "angle": jnp.asarray(0.6),
    }
    zero, rest = jnp.zeros((BATCH, N)), jnp.full((BATCH, N), V_RESET)
    states = [(zero, zero, zero), (rest, zero), zero, {"u": zero, "w": zero}, zero]
    if lateral:
        states = [s if i == 3 else (s, zero) for i, s in enumerate(states)]
    flat = [zero, zero, zero, rest, *[zero] * 8]
    return params, states, flat, normal(T, BATCH, 5), normal(BATCH, N)


@functools.cache
def by_hand(lateral):
    """`f(cut [T], weights [T]) -> ((loss, (outputs, spikes)), grads)`, one program."""
    params, _, flat, xs, target = case(lateral)
    f = jax.jit(jax.value_and_grad(functools.partial(written_out, lateral=lateral), has_aux=True))
    return lambda cut, weights: f(params, flat, xs, target, jnp.asarray(cut), jnp.asarray(weights))


@functools.cache
def under(rule, lateral):
    params, state, _, xs, target = case(lateral)
    f = jax.jit(rule.value_and_grad(network(lateral), squared_error))
    return f(params, state, xs, target, jax.random.key(2))


EVERY = np.full(T, True)
CUTS = {sltt(): EVERY, sltt(3): EVERY, sltt(T): EVERY, tbptt(3): np.arange(1, T + 1) % 3 == 0}
CUTS |= {bptt(): ~EVERY, bptt(3): ~EVERY}
recurrent_first = pytest.mark.parametrize(
    "lateral", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["recurrent", "plain"]
)


@pytest.mark.parametrize(
    ("rule", "lateral"),
    [
        *((rule, True) for rule in (sltt(), sltt(3), bptt())),
        *(pytest.param(rule, True, marks=pytest.mark.slow) for rule in (sltt(T), tbptt(3), bptt(3))),
        *(pytest.param(rule, False, marks=pytest.mark.slow) for rule in CUTS),
    ],
    ids=str,
)
def test_gradient_is_that_of_the_loop_written_out(rule, lateral):
    (loss, (outputs, _)), grads = by_hand(lateral)(CUTS[rule], np.full(T, 1 / T))
    (value, aux), found = under(rule, lateral)
    if not lateral:
        grads, found = ({k: v for k, v in g.items() if k != "w"} for g in (grads, found))
    np.testing.assert_allclose(value, loss, rtol=1e-12)
    assert_close((aux.outputs, found), (outputs, grads))


@pytest.mark.slow
@pytest.mark.parametrize("lateral", [True, False])
def test_sltt_k(lateral):
    rule = sltt_k(3)
    backward = rule.plan(T, jax.random.key(2)).backward
    _, grads = by_hand(lateral)(EVERY, backward / T)
    found = under(rule, lateral)[1]
    if not lateral:
        grads, found = ({k: v for k, v in g.items() if k != "w"} for g in (grads, found))
    assert backward.sum() == 3
    assert_close(found, grads)


@recurrent_first
def test_rules_that_must_differ_do_and_layers_are_live(lateral):
    (_, (_, spikes)), _ = by_hand(lateral)(EVERY, np.full(T, 1 / T))
    for s in spikes:  # of the last step
        assert 0.02 < s.mean() < 0.7, [float(s.mean()) for s in spikes]
    exact, cut = (under(rule, lateral)[1] for rule in (bptt(), sltt()))
    if not lateral:
        exact, cut = ({k: v for k, v in g.items() if k != "w"} for g in (exact, cut))
    assert min(difference(cut, exact).values()) > 1e-3 and max(difference(cut, exact).values()) > 0.05
    assert all(np.abs(g).max() > 1e-6 for g in jax.tree.leaves(exact))


@pytest.mark.slow
def test_a_window_differs_from_both():
    window, exact, cut = (under(rule, True)[1] for rule in (tbptt(3), bptt(), sltt()))
    assert min(max(difference(window, other).values()) for other in (exact, cut)) > 1e-2


@pytest.mark.slow
def test_stream():
    params, state, _, xs, target = case(True)
    f = stream(sltt(3), network(True), squared_error)
    result = f(params, state, (xs[i : i + 3] for i in range(0, T, 3)), target, T=T)
    assert_close(result, under(sltt(3), True), 1e-13)


@pytest.mark.slow
def test_memory_does_not_grow_with_time():
    """Under bptt, the control within, it must."""
    assert_memory_flat(network(True), squared_error, sltt(3), *case(True)[:2], *case(True)[3:], T=(6, 24))


@pytest.mark.slow
def test_derivatives_by_inputs_and_of_second_order():
    """Through the lateral product that is known from the loop: under sltt(3) as under sltt, and not 0."""
    params, state, _, xs, target = case(True)

    def twice(rule):
        f = lambda p, xs: rule.value_and_grad(network(True), squared_error)(p, state, xs, target)[1]["w"][0]
        weights = jnp.cos(jnp.arange(N * N)).reshape(N, N)
        return jax.jit(jax.grad(lambda p, xs: jnp.vdot(weights, f(p, xs)), (0, 1)))(params, xs)

    one, three = twice(sltt()), twice(sltt(3))
    assert_close(three[1], one[1])
    for name in ("k", "beta", "logit_decay"):
        assert_close(three[0][name], one[0][name])
    assert np.abs(one[1]).max() > 1e-6


def test_forward_is_the_same_with_any_chunk():
    params, state, _, xs, _ = case(True)
    f = jax.jit(run, static_argnums=0, static_argnames=("chunk", "temporal_gradient"))
    outputs, end = f(network(True), params, state, xs)
    for chunk in (1, 3):
        other = f(network(True), params, state, xs, chunk=chunk, temporal_gradient=False)
        chex.assert_trees_all_close(other, (outputs, end), rtol=1e-13)
