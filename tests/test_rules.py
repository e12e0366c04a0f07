"""The identities that say what the rules are, in double precision."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.common.nets import NETS, T, assert_close, difference, gradient, net, two_matrices

from sltt_jax import functional
from sltt_jax.blocks import Repeat, run
from sltt_jax.layers import FIRING_RATE
from sltt_jax.models import MLP, ConvNet
from sltt_jax.neurons import Neuron
from sltt_jax.rules import bptt, sltt, sltt_k, tbptt

pytestmark = pytest.mark.usefixtures("x64")
every_net = pytest.mark.parametrize("name", NETS)

RULES = [
    bptt(), bptt(chunk=4), bptt(chunk=T), bptt(remat=True), tbptt(1), tbptt(2), tbptt(4), tbptt(T), sltt(),
    sltt(chunk=2), sltt(chunk=4), sltt(chunk=T), sltt_k(1), sltt_k(3), sltt_k(T),
]  # fmt: skip


@every_net
def test_forward_is_the_same_under_every_rule(name):
    (loss, aux), _ = gradient(name, bptt())
    assert aux.losses.shape == (T,)
    n = net(name)
    outputs, state = jax.jit(lambda *a: run(n.apply, *a))(n.params, n.state, n.inputs)
    np.testing.assert_array_equal(outputs.sum(0), aux.outputs)
    for rule in RULES:
        (other_loss, other), _ = gradient(name, rule)
        np.testing.assert_array_equal(other.outputs, aux.outputs)
        # The compiler may fuse a loss otherwise, and a block moves running statistics in closed form.
        assert_close((other_loss, other.losses, other.state), (loss, aux.losses, state), 1e-13)


def test_sltt_is_autodiff_with_the_membrane_detached_by_hand():
    """Against a loop written out here, which shares no line with the cells or the rules."""
    n = net("two_matrices")

    @jax.custom_jvp
    def spike(u):
        return (u >= 1.0).astype(u.dtype)

    @spike.defjvp
    def _(primals, tangents):
        (u,), (du,) = primals, tangents
        return spike(u), jnp.maximum(0, 1 - jnp.abs(u - 1)) * du

    def loss(params, detach):
        v1, v2 = n.state
        total = 0.0
        for x in n.inputs:
            u1 = 0.5 * detach(v1) + x @ params["w1"]
            s1 = spike(u1)
            u2 = 0.5 * detach(v2) + s1 @ params["w2"]
            s2 = spike(u2)
            v1, v2 = u1 - s1, u2 - s2
            total += n.step_loss(s2, n.target)
        return total / T

    value, grads = jax.value_and_grad(loss)(n.params, jax.lax.stop_gradient)
    (sltt_value, _), sltt_grads = gradient("two_matrices", sltt())
    np.testing.assert_allclose(sltt_value, value, rtol=1e-14)
    assert_close(sltt_grads, grads)
    value, grads = jax.value_and_grad(loss)(n.params, lambda v: v)
    assert_close(gradient("two_matrices", bptt())[1], grads)


@every_net
@pytest.mark.parametrize("temporal", [False, True])
def test_sltt_and_bptt_are_autodiff_of_the_whole_loss(name, temporal):
    n = net(name)

    @jax.jit
    @jax.grad
    def whole(params):
        outputs, _ = run(n.apply, params, n.state, n.inputs, temporal_gradient=temporal)
        return jax.vmap(n.step_loss, (0, None))(outputs, n.target).mean()

    assert_close(gradient(name, bptt() if temporal else sltt())[1], whole(n.params))


@every_net
def test_truncation_at_one_step_and_at_none(name):
    assert_close(gradient(name, tbptt(1))[1], gradient(name, sltt())[1])
    assert_close(gradient(name, tbptt(T))[1], gradient(name, bptt())[1])


@every_net
def test_one_time_step(name):
    n = net(name)
    grads = [
        jax.jit(rule.value_and_grad(n.apply, n.step_loss))(n.params, n.state, n.inputs[:1], n.target)[1]
        for rule in (bptt(), sltt(), tbptt(1), sltt_k(1, draw="last"))
    ]
    for other in grads[1:]:
        assert_close(other, grads[0])


@every_net
@pytest.mark.parametrize("rule", [bptt, sltt])
def test_every_chunk_gives_the_same_gradient(name, rule):
    for chunk in range(2, T + 1):  # 4 and 5 leave a shorter block at the end
        assert_close(gradient(name, rule(chunk=chunk))[1], gradient(name, rule())[1])


@every_net
def test_remat_gives_the_same_gradient(name):
    assert_close(gradient(name, bptt(remat=True))[1], gradient(name, bptt())[1])


@every_net
def test_sltt_k_of_all_steps_is_sltt(name):
    for scale in ("paper", "unbiased"):
        assert_close(gradient(name, sltt_k(T, scale=scale))[1], gradient(name, sltt())[1])


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize(("scale", "share"), [("paper", True), ("unbiased", False)])
def test_expectation_of_sltt_k_over_all_subsets(k, scale, share):
    subsets = list(itertools.combinations(range(T), k))
    grads = [gradient("two_matrices", sltt_k(k, draw=s, scale=scale))[1] for s in subsets]
    mean = jax.tree.map(lambda *g: sum(g) / len(subsets), *grads)
    expected = jax.tree.map(lambda g: g * (k / T if share else 1), gradient("two_matrices", sltt())[1])
    assert_close(mean, expected)


def test_steps_of_sltt_k():
    assert sltt_k(2, draw="first").selected(5).tolist() == [True, True, False, False, False]
    assert sltt_k(2, draw="last").selected(5).tolist() == [False, False, False, True, True]
    assert sltt_k(2, draw="strided").selected(8).tolist() == [t in (2, 6) for t in range(8)]
    assert sltt_k(2, draw=(0, 3)).selected(5).tolist() == [True, False, False, True, False]
    for T_, k in ((1, 1), (7, 3), (5, 5)):
        assert sltt_k(k, draw="strided").selected(T_).sum() == k
    draws = jax.vmap(lambda key: sltt_k(2).selected(6, key))(jax.random.split(jax.random.key(0), 3000))
    assert (draws.sum(1) == 2).all()
    np.testing.assert_allclose(draws.mean(0), 1 / 3, atol=0.035)  # 4 standard deviations


def test_bptt_is_the_derivative():
    """Finite differences of sixth order, on a network whose spikes are a smooth function."""
    n = two_matrices(spike=lambda x: jax.nn.sigmoid(4 * x))

    def loss(params):
        return bptt().value_and_grad(n.apply, n.step_loss)(params, n.state, n.inputs, n.target)[0][0]

    grads = bptt().value_and_grad(n.apply, n.step_loss)(n.params, n.state, n.inputs, n.target)[1]
    loss = jax.jit(loss)
    rng = np.random.default_rng(3)
    for name in n.params:
        direction = rng.normal(size=n.params[name].shape)
        direction /= np.linalg.norm(direction)
        h = 4e-3
        at = lambda k: float(loss({**n.params, name: n.params[name] + k * h * direction}))  # noqa: B023
        slope = (45 * (at(1) - at(-1)) - 9 * (at(2) - at(-2)) + (at(3) - at(-3))) / (60 * h)
        np.testing.assert_allclose(jnp.vdot(grads[name], direction), slope, rtol=1e-10)
        # The control: without its temporal part the gradient is another one.
        cut = sltt().value_and_grad(n.apply, n.step_loss)(n.params, n.state, n.inputs, n.target)[1]
        assert abs(jnp.vdot(cut[name], direction) / slope - 1) > 1e-2


@every_net
def test_networks_are_alive_and_rules_that_must_differ_do(name):
    exact, cut = gradient(name, bptt())[1], gradient(name, sltt())[1]
    for other in (cut, gradient(name, tbptt(2))[1]):
        assert max(difference(other, exact).values()) > 1e-2
    assert max(difference(gradient(name, tbptt(2))[1], cut).values()) > 1e-2
    assert max(difference(gradient(name, sltt_k(3))[1], cut).values()) > 1e-2
    # Not by a factor only: the direction differs too.
    scaled = jax.tree.map(lambda g: 2 * g, gradient(name, sltt_k(3))[1])
    assert max(difference(scaled, cut).values()) > 1e-2
    assert all(jnp.abs(g).max() > 1e-6 for g in jax.tree.leaves(exact))


def test_firing_rates_of_the_networks():
    n = net("two_matrices")
    outputs, _ = run(n.apply, n.params, n.state, n.inputs)
    assert 0.02 < outputs.mean() < 0.6
    hidden_only = lambda p, v, xs, **kw: n.apply({**p, "w2": jnp.eye(12)}, v, xs, **kw)
    hidden, _ = run(hidden_only, n.params, [jnp.zeros((4, 12))] * 2, n.inputs)
    assert 0.02 < hidden.mean() < 0.6
    for name, model in (
        ("mlp", MLP(features=(24, 20), classes=5, neuron=Neuron(tau=2.0, v_threshold=0.5))),
        ("convnet", ConvNet(features=(5, 6), classes=5, neuron=Neuron(tau=2.0))),
    ):
        n = net(name)
        apply = functional.applier(model, record=(FIRING_RATE,))
        (_, recorded), _ = run(apply, n.params, n.state, n.inputs)
        rates = {layer: float(v["rate"].mean()) for layer, v in recorded[FIRING_RATE].items()}
        assert set(rates) == {"LIF_0", "LIF_1"}
        assert all(0.02 < r < 0.6 for r in rates.values()), rates


@pytest.mark.parametrize("rule", [bptt(), bptt(chunk=4), tbptt(4), sltt(), sltt(chunk=4), sltt_k(2)], ids=str)
def test_repeat_is_the_broadcast_input(rule):
    n = net("convnet")
    f = jax.jit(rule.value_and_grad(n.apply, n.step_loss))
    x = n.inputs[0]
    args = n.target, jax.random.key(0)
    (loss, aux), grads = f(n.params, n.state, Repeat(x, T), *args)
    (loss_b, aux_b), grads_b = f(n.params, n.state, jnp.broadcast_to(x, (T, *x.shape)), *args)
    assert_close((loss, aux, grads), (loss_b, aux_b, grads_b), 1e-12)


def test_pytree_inputs_and_outputs():
    """Blocks are cut and outputs are summed leaf by leaf."""

    def apply(params, state, xs, *, temporal_gradient):
        out = xs["a"] * params + xs["b"]
        return {"sum": out, "twice": 2 * out}, state

    inputs = {"a": jnp.arange(5.0)[:, None], "b": jnp.ones((5, 1))}
    loss = lambda out, target: jnp.sum(out["twice"] - target)
    (value, aux), grad = sltt(chunk=2).value_and_grad(apply, loss)(jnp.float64(3), (), inputs, 0.0)
    assert value == 2 * (3 * 10 + 5) / 5
    assert grad == 2 * 10 / 5
    assert aux.outputs["sum"] == 35
    assert aux.losses.tolist() == [2.0, 8.0, 14.0, 20.0, 26.0]


def test_rules_are_static_arguments():
    f = jax.jit(lambda rule, x: x * (rule == sltt(chunk=2)), static_argnums=0)
    assert f(sltt(chunk=2), 3) == 3 and f(sltt(), 3) == 0
    assert str(sltt_k(2)) == "sltt_k(k=2, draw='uniform', scale='paper')"
    assert len({bptt(), bptt(), tbptt(1), sltt(1), sltt_k(1)}) == 4


def impossible(build, inputs=None, **kwargs):
    def call():
        n = net("two_matrices")
        x = n.inputs if inputs is None else inputs
        f = jax.jit(build().value_and_grad(n.apply, n.step_loss))
        f(n.params, n.state, x, n.target, **kwargs)

    return call


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sltt(chunk=0), r"chunk must be a whole number >= 1, got 0"),
        (lambda: sltt(chunk=1.5), r"chunk must be a whole number >= 1, got 1.5"),  # pyright: ignore
        (lambda: bptt(chunk=-1), r"chunk must be .* got -1"),
        (lambda: tbptt(window=0), r"window must be .* got 0"),
        (lambda: sltt_k(k=0), r"k must be .* got 0"),
        (lambda: sltt_k(1, draw="middle"), r"draw must be .* got 'middle'"),
        (lambda: sltt_k(2, draw=(1, 1)), r"draw must name k=2 different steps, got \(1, 1\)"),
        (lambda: sltt_k(1, scale="none"), r"scale must be .* got 'none'"),
        (impossible(lambda: sltt(chunk=T + 1)), r"chunk=7 is more than the T=6 time steps"),
        (impossible(lambda: bptt(chunk=T + 1)), r"chunk=7 is more than the T=6"),
        (impossible(lambda: tbptt(T + 1)), r"window=7 is more than the T=6"),
        (impossible(lambda: sltt_k(T + 1, draw="last")), r"k=7 is more than the T=6"),
        (impossible(lambda: sltt_k(1, draw=(6,))), r"steps of draw must be in 0..5, got \(6,\)"),
        (impossible(lambda: sltt_k(1)), r"needs a key"),
        (impossible(sltt, inputs=np.zeros((0, 4, 5))), r"at least one time step, got T=0"),
        (impossible(sltt, inputs=Repeat(np.zeros((4, 5)), 0)), r"at least one time step, got T=0"),
        (impossible(sltt, inputs=np.float64(1)), r"\[T, B, ...\]"),
        (impossible(sltt, inputs=[np.zeros((6, 4)), np.zeros((5, 4))]), r"same number .* got \[5, 6\]"),
        (lambda: run(lambda: 0, {}, {}, np.zeros((3, 1)), chunk=4), r"chunk=4 is more than the T=3"),  # pyright: ignore
    ],
)
def test_impossible_settings(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_loss_that_is_not_a_scalar():
    n = net("two_matrices")
    with pytest.raises(ValueError, match=r"scalar for one step, got shape \(4, 3\)"):
        sltt().value_and_grad(n.apply, lambda o, y: o - y)(n.params, n.state, n.inputs, n.target)
