"""The identities that say what the rules are, in double precision; those of SLTT-K are in test_sltt_k.py."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import functional
from sltt_jax.blocks import Repeat, run
from sltt_jax.layers import FIRING_RATE
from sltt_jax.rules import bptt, sltt, sltt_k, tbptt
from tests.common import nets
from tests.common.nets import T, assert_close, difference, gradient, net, program

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")
every_net = pytest.mark.parametrize("name", nets.NAMES)

# Blocks of 2 are a loop, 4 leaves a shorter block at the end, and T is no loop at all. The smaller a network,
# the sooner it is compiled, and the more it is tried under without `-m slow`.
OF_ALL = [bptt(), sltt(), sltt(4), sltt_k(3)]
RULES = {
    "convnet": [bptt(), sltt()],
    "two_matrices": [
        *OF_ALL, bptt(4), bptt(remat=True), tbptt(1), tbptt(2), tbptt(4), tbptt(T), sltt(T),
    ],
}  # fmt: skip
SLOW_RULES = [*OF_ALL, tbptt(1), tbptt(T), sltt(2), sltt(T), bptt(2), bptt(4), bptt(T)]
slow_but_one = pytest.mark.parametrize(
    "name", ["two_matrices", *(pytest.param(name, marks=pytest.mark.slow) for name in nets.MODELS)]
)


@pytest.mark.parametrize(
    ("name", "rules"),
    [
        *(pytest.param(*case, id=case[0]) for case in RULES.items()),
        *(pytest.param(name, SLOW_RULES, id=f"{name}-more", marks=pytest.mark.slow) for name in nets.NAMES),
    ],
)
def test_forward_is_the_same_under_every_rule(name, rules):
    outputs, state = nets.forward(name)
    (loss, aux), _ = gradient(name, bptt())
    chex.assert_shape(aux.losses, (T,))
    np.testing.assert_allclose(loss, aux.losses.mean(), rtol=1e-15)
    for rule in rules:
        (other_loss, other), _ = gradient(name, rule)
        chex.assert_trees_all_equal(other.outputs, outputs.sum(0))
        # The compiler may fuse a loss otherwise, and a block moves running statistics in closed form.
        assert_close((other_loss, other.losses, other.state), (loss, aux.losses, state), 1e-13)


def test_sltt_is_autodiff_with_the_membrane_detached_by_hand():
    n = net("two_matrices")
    by_hand = jax.jit(
        jax.value_and_grad(lambda params, detach: nets.written_out(n, params, detach)), static_argnums=1
    )
    value, grads = by_hand(n.params, jax.lax.stop_gradient)
    (sltt_value, _), sltt_grads = gradient("two_matrices", sltt())
    np.testing.assert_allclose(sltt_value, value, rtol=1e-14)
    assert_close(sltt_grads, grads)
    value, grads = by_hand(n.params, lambda v: v)
    assert_close(gradient("two_matrices", bptt())[1], grads)


@pytest.mark.parametrize(
    ("name", "temporal"),
    [
        *(("two_matrices", temporal) for temporal in (False, True)),
        ("convnet", False),
        *(pytest.param("mlp", temporal, marks=pytest.mark.slow) for temporal in (False, True)),
    ],
)
def test_sltt_and_bptt_are_autodiff_of_the_whole_loss(name, temporal):
    n = net(name)

    @jax.jit
    @jax.grad
    def whole(params):
        outputs, _ = run(n.apply, params, n.state, n.inputs, temporal_gradient=temporal)
        return jax.vmap(n.step_loss, (0, None))(outputs, n.target).mean()

    assert_close(gradient(name, bptt() if temporal else sltt())[1], whole(n.params))


@slow_but_one
def test_truncation_at_one_step_and_at_none(name):
    assert_close(gradient(name, tbptt(1))[1], gradient(name, sltt())[1])
    assert_close(gradient(name, tbptt(T))[1], gradient(name, bptt())[1])


@slow_but_one
def test_one_time_step(name):
    n = net(name)
    rules = (bptt(), sltt()) if name == "convnet" else (bptt(), sltt(), tbptt(1), sltt_k(1, draw="last"))
    exact, *others = (program(name, rule)(n.params, n.state, n.inputs[:1], n.target)[1] for rule in rules)
    for other in others:
        assert_close(other, exact)


@pytest.mark.parametrize(
    ("name", "rule"),
    [(name, rule) for name, rules in RULES.items() for rule in rules if getattr(rule, "chunk", 1) > 1],
    ids=str,
)
def test_a_chunk_gives_the_same_gradient(name, rule):
    assert_close(gradient(name, rule)[1], gradient(name, type(rule)())[1])


@pytest.mark.parametrize("name", ["two_matrices", pytest.param("mlp", marks=pytest.mark.slow)])
def test_remat_gives_the_same_gradient(name):
    assert_close(gradient(name, bptt(remat=True))[1], gradient(name, bptt())[1])


@pytest.mark.slow
@every_net
def test_all_chunks_and_remat_give_the_same_gradient(name):
    for rule in (bptt, sltt):
        for other in (
            *(rule(chunk) for chunk in range(2, T + 1)),
            *([bptt(2, True)] if rule == bptt else ()),
        ):
            (_, aux), grads = gradient(name, rule())
            (_, other_aux), other_grads = gradient(name, other)
            assert_close(other_grads, grads)
            chex.assert_trees_all_equal(other_aux.outputs, aux.outputs)


def test_bptt_is_the_derivative():
    """Finite differences of sixth order, on a network whose spikes are a smooth function."""
    n = nets.two_matrices(spike=lambda x: jax.nn.sigmoid(4 * x))
    exact, cut = (jax.jit(rule.value_and_grad(n.apply, n.step_loss)) for rule in (bptt(), sltt()))
    args = n.state, n.inputs, n.target
    grads, without = exact(n.params, *args)[1], cut(n.params, *args)[1]
    rng = np.random.default_rng(3)
    for name in n.params:
        direction = rng.normal(size=n.params[name].shape)
        direction /= np.linalg.norm(direction)
        h = 4e-3

        def at(k):
            return float(exact({**n.params, name: n.params[name] + k * h * direction}, *args)[0][0])  # noqa: B023

        slope = (45 * (at(1) - at(-1)) - 9 * (at(2) - at(-2)) + (at(3) - at(-3))) / (60 * h)
        np.testing.assert_allclose(np.vdot(grads[name], direction), slope, rtol=1e-10)
        # The control: without its temporal part the gradient is another one.
        assert abs(np.vdot(without[name], direction) / slope - 1) > 1e-2


@pytest.mark.parametrize("name", ["two_matrices", "convnet", pytest.param("mlp", marks=pytest.mark.slow)])
def test_rules_that_must_differ_do(name):
    exact, cut = gradient(name, bptt())[1], gradient(name, sltt())[1]
    assert max(difference(cut, exact).values()) > 1e-2
    if name == "two_matrices":
        window = gradient(name, tbptt(2))[1]
        assert max(difference(window, exact).values()) > 1e-2
        assert max(difference(window, cut).values()) > 1e-2
    assert all(np.abs(g).max() > 1e-6 for g in jax.tree.leaves(exact))


def test_firing_rates_of_the_networks():
    """Between 2 and 60 % in every layer, else the identities would show nothing."""
    outputs, _ = nets.forward("two_matrices")
    assert 0.02 < outputs.mean() < 0.6
    n = net("two_matrices")
    # The first layer's spikes go on as they are.
    seen = jax.jit(lambda p, v: run(n.apply, {**p, "w2": jnp.eye(12)}, v, n.inputs)[0])
    spikes = seen(n.params, [jnp.zeros((4, 12))] * 2)
    assert 0.02 < spikes.mean() < 0.6
    for name, model in nets.MODELS.items():
        n = net(name)
        apply = functional.applier(model, record=(FIRING_RATE,))
        (_, recorded), _ = jax.jit(lambda *args: run(apply, *args))(n.params, n.state, n.inputs)  # noqa: B023
        rates = {layer: float(v["rate"].mean()) for layer, v in recorded[FIRING_RATE].items()}
        assert set(rates) == {"LIF_0", "LIF_1"}
        assert all(0.02 < r < 0.6 for r in rates.values()), rates


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        *(("two_matrices", rule) for rule in (bptt(), bptt(4), tbptt(4), sltt(), sltt(4), sltt_k(3))),
        ("convnet", sltt()),
    ],
    ids=str,
)
def test_repeat_is_the_broadcast_input(name, rule):
    n = net(name)
    f = program(name, rule)
    x = n.inputs[0]
    args = n.target, jax.random.key(0)
    repeated = f(n.params, n.state, Repeat(x, T), *args)
    assert_close(repeated, f(n.params, n.state, np.stack([x] * T), *args), 1e-12)


def test_pytree_inputs_and_outputs():
    """Blocks are cut and outputs are summed leaf by leaf."""

    def apply(params, state, xs, *, temporal_gradient):
        out = xs["a"] * params + xs["b"]
        return {"sum": out, "twice": 2 * out}, state

    inputs = {"a": jnp.arange(5.0)[:, None], "b": jnp.ones((5, 1))}
    loss = lambda out, target: jnp.sum(out["twice"] - target)
    f = jax.jit(sltt(chunk=2).value_and_grad(apply, loss))
    (value, aux), grad = f(jnp.float64(3), (), inputs, 0.0)
    assert value == 2 * (3 * 10 + 5) / 5
    assert grad == 2 * 10 / 5
    assert aux.outputs["sum"] == 35
    assert aux.losses.tolist() == [2.0, 8.0, 14.0, 20.0, 26.0]
