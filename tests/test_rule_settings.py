"""How rules are written and read, what they are equal to, and what they refuse."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import Neuron, lif, synapse
from sltt_jax.blocks import Repeat, run
from sltt_jax.rules import Rule, bptt, ottt, parse_rule, sltt, sltt_k, tbptt
from tests.common.nets import T, net, squared_error

SPELLINGS = {
    "bptt": bptt(),
    "bptt(4)": bptt(chunk=4),
    "bptt(remat=True)": bptt(remat=True),
    "bptt(4, bits=True)": bptt(4, bits=True),
    "ottt(0.5)": ottt(0.5),
    "bptt(4, remat=True)": bptt(4, True),
    "tbptt(4)": tbptt(window=4),
    "sltt": sltt(),
    "sltt(6)": sltt(chunk=6),
    "sltt_k(2)": sltt_k(2),
    "sltt_k(2, draw=first)": sltt_k(2, "first"),
    "sltt_k(2, scale=unbiased)": sltt_k(2, scale="unbiased"),
    "sltt_k(2, draw=first, scale=unbiased)": sltt_k(2, "first", "unbiased"),
    "sltt_k(2, draw=(0, 3))": sltt_k(2, (0, 3)),
    "sltt_k(1, draw=(5,))": sltt_k(1, (5,)),
}


@pytest.mark.parametrize(("text", "rule"), SPELLINGS.items(), ids=SPELLINGS)
def test_a_rule_is_written_without_its_defaults(text, rule):
    assert str(rule) == f"{rule}" == text
    assert parse_rule(text) == rule and isinstance(rule, Rule)


def test_every_rule_is_read_as_it_is_written():
    draws = ("uniform", "first", "last", "strided", (4, 1))
    rules = [
        *(bptt(chunk, **mode) for chunk in (1, 3) for mode in ({}, {"remat": True}, {"bits": True})),
        *(ottt(decay, chunk) for decay, chunk in itertools.product((0.0, 0.5), (1, 3))),
        *(sltt(chunk) for chunk in (1, 2, 100)),
        *(tbptt(window) for window in (1, 7)),
        *(sltt_k(2, draw, scale) for draw, scale in itertools.product(draws, ("paper", "unbiased"))),
    ]
    texts = [str(rule) for rule in rules]
    assert len(set(texts)) == len(texts) == len(set(rules))
    assert [parse_rule(text) for text in texts] == rules
    assert [parse_rule(repr(rule)) for rule in rules] == rules


def test_other_ways_to_write_one():
    for text in ("sltt(chunk=2)", " sltt( 2 )\n", "sltt(chunk = 2)"):
        assert parse_rule(text) == sltt(2)
    assert parse_rule("bptt()") == bptt()
    assert parse_rule("sltt_k(k=2, scale='unbiased', draw=first)") == sltt_k(2, "first", "unbiased")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("stdp", "$"),
        ("", "$"),
        ("sltt(", "$"),
        ("rules.sltt", "$"),
        ("sltt()()", "$"),
        ("print('sltt')", "$"),
        ("sltt(0)", ": chunk must be a whole number >= 1, got 0$"),
        ("sltt(1.5)", ": chunk must be a whole number >= 1, got 1.5$"),
        ("sltt(2, 3)", ": .*takes from 1 to 2 positional arguments but 3 were given$"),
        ("sltt(k=2)", ": .*unexpected keyword argument 'k'$"),
        ("sltt(**{'chunk': 2})", ": .*unexpected keyword argument"),
        ("tbptt", ": .*missing 1 required positional argument: 'window'$"),
        ("sltt_k(2, draw=middle)", ": draw must be .* got 'middle'$"),
        ("sltt_k(2, scale=none)", ": scale must be .* got 'none'$"),
        ("sltt(len('ab'))", ": malformed node"),
    ],
)
def test_what_is_no_rule(text, why):
    forms = (
        r"a rule is one of bptt\(chunk, remat, bits\), tbptt\(window\), sltt\(chunk\), "
        r"sltt_k\(k, draw, scale\), ottt\(decay, chunk\)"
    )
    with pytest.raises(ValueError, match=f"^{forms}; got .*{why}") as raised:
        parse_rule(text)
    assert f"; got {text!r}" in str(raised.value)


def test_share_of_the_steps_with_a_backward_pass():
    assert sltt_k(2).backward_share(8) == 0.25 and sltt_k(3, scale="unbiased").backward_share(3) == 1
    for rule in (bptt(), tbptt(2), sltt(), sltt(4)):
        assert rule.backward_share(8) == 1


def test_rules_are_static_arguments():
    f = jax.jit(lambda rule, x: x * (rule == sltt(chunk=2)), static_argnums=0)
    assert f(sltt(chunk=2), 3) == 3 and f(sltt(), 3) == 0
    assert repr(sltt_k(2)) == "sltt_k(k=2, draw='uniform', scale='paper')"
    assert len({bptt(), bptt(), tbptt(1), sltt(1), sltt_k(1)}) == 4


def of_two_matrices(rule, inputs=None, step_loss=None):
    """What building the rule and tracing its function raises."""

    def call():
        n = net("two_matrices")
        f = rule().value_and_grad(n.apply, step_loss or n.step_loss)
        jax.eval_shape(f, n.params, n.state, n.inputs if inputs is None else inputs, n.target)

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
        (lambda: sltt_k(2, draw=(1.5, 2.2)), r"draw must name steps by whole numbers, got \(1.5, 2.2\)"),  # pyright: ignore
        (lambda: Repeat(np.zeros((4, 5)), 5.0), r"T must be a whole number of time steps, got 5.0"),  # pyright: ignore
        (lambda: sltt_k(1, scale="none"), r"scale must be .* got 'none'"),
        (of_two_matrices(lambda: sltt(chunk=T + 1)), r"chunk=7 is more than the T=6 time steps"),
        (of_two_matrices(lambda: bptt(chunk=T + 1)), r"chunk=7 is more than the T=6"),
        (of_two_matrices(lambda: tbptt(T + 1)), r"window=7 is more than the T=6"),
        (of_two_matrices(lambda: sltt_k(T + 1, draw="last")), r"k=7 is more than the T=6"),
        (of_two_matrices(lambda: sltt_k(1, draw=(6,))), r"steps of draw must be in 0..5, got \(6,\)"),
        (of_two_matrices(lambda: sltt_k(1)), r"needs a key"),
        (of_two_matrices(sltt, np.zeros((0, 4, 5))), r"at least one time step, got T=0"),
        (of_two_matrices(sltt, Repeat(np.zeros((4, 5)), 0)), r"at least one time step, got T=0"),
        (of_two_matrices(sltt, np.float64(1)), r"\[T, B, ...\]"),
        (of_two_matrices(sltt, [np.zeros((6, 4)), np.zeros((5, 4))]), r"same number .* got \[5, 6\]"),
        (of_two_matrices(sltt, step_loss=lambda o, y: o - y), r"a scalar for one step, got shape \(4, 3\)"),
        (lambda: run(lambda: 0, {}, {}, np.zeros((3, 1)), chunk=4), r"chunk=4 is more than the T=3"),  # pyright: ignore
    ],
)
def test_impossible_settings(call, message, x64):
    with pytest.raises(ValueError, match=message):
        call()


def with_an_integer(params, state, xs, *, temporal_gradient):
    how = {"temporal_gradient": temporal_gradient}
    xs = synapse(lambda xs, w: xs @ w, xs * jnp.asarray(params["id"]).any(), params["w"], **how)
    v, s = lif(state, xs, Neuron(), **how)
    return s, v


RULES = bptt(), bptt(3), bptt(remat=True), bptt(6, bits=True), tbptt(2), sltt(), sltt(3), sltt_k(2), ottt(0.5)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("integer", [np.int32(1), np.ones((2, 2), bool), 3], ids=["int32", "bool", "int64"])
def test_integers_are_no_parameters(rule, integer, x64):
    """Not even a float32 could hold them all."""
    n = net("two_matrices")
    f = lambda params, key: rule.value_and_grad(with_an_integer, squared_error)(
        params, n.state[0], n.inputs, n.state[0], key
    )
    message = (
        rf"params\['id'\] is {jnp.result_type(integer)}, which has no gradient: put it into the state, or"
    )
    with pytest.raises(TypeError, match=message):
        jax.eval_shape(f, {"w": n.params["w1"], "id": integer}, jax.random.key(0))


@pytest.mark.parametrize("rule", [bptt(), sltt(3)], ids=str)
def test_a_network_may_close_over_integers(rule, x64):
    n = net("two_matrices")

    def apply(params, *args, **how):
        return with_an_integer({**params, "id": jnp.asarray([16777217])}, *args, **how)

    f = jax.jit(rule.value_and_grad(apply, squared_error))
    _, grads = f({"w": n.params["w1"]}, n.state[0], n.inputs, n.state[0])
    assert set(grads) == {"w"} and np.abs(grads["w"]).max() > 0
