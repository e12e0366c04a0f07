"""The check of a network of one's own: it passes what keeps the contract, and names what does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import Neuron, Repeat, functional, lif, lif_step
from sltt_jax.analysis import BrokenApply, check_apply
from sltt_jax.models import RecurrentNet

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")

rng = np.random.default_rng(0)
PARAMS = {"w": rng.normal(size=(5, 8)), "u": 0.3 * rng.normal(size=(8, 8))}
STATE = {"v": np.zeros((4, 8)), "s": np.zeros((4, 8)), "calls": np.zeros((), int)}
XS = rng.normal(size=(5, 4, 5))


def by_hand(*, cut=("v", "s"), at_entry=False, always=False, neuron=Neuron(tau=3.0, v_threshold=0.5)):  # noqa: B008
    """A recurrent network as one would write it, which cuts what is in `cut`, or `at_entry` alone."""

    def apply(params, state, xs, *, temporal_gradient):
        def stopped(state):
            return {k: jax.lax.stop_gradient(v) if k in cut else v for k, v in state.items()}

        def step(state, x):
            if (always or not temporal_gradient) and not at_entry:
                state = stopped(state)
            v, s = lif_step(state["v"], x @ params["w"] + state["s"] @ params["u"], neuron)
            return {"v": v, "s": s, "calls": state["calls"] + 1}, s

        state = stopped(state) if at_entry and not temporal_gradient else state
        state, outputs = jax.lax.scan(step, state, xs)
        return outputs, state

    return apply


def what(apply, state=STATE, inputs=XS, params=PARAMS):
    with pytest.raises(BrokenApply) as error:
        check_apply(apply, params, state, inputs)
    assert all(f.error > 1e-6 and f.what in str(error.value) for f in error.value.findings)
    return [f.what for f in error.value.findings]


def test_a_network_that_keeps_the_contract_passes():
    check_apply(by_hand(), PARAMS, STATE, XS)


@pytest.mark.slow
def test_a_network_of_the_library_passes():
    model = RecurrentNet((6,), 3, neuron=Neuron(tau=3.0, v_threshold=0.3))
    params, state = functional.init(model, jax.random.key(0, impl="rbg"), XS[0])
    params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
    check_apply(functional.applier(model), params, state, Repeat(XS[0], 3))


@pytest.mark.parametrize("forgotten", ["v", "s"])
def test_a_forgotten_cut_is_named(forgotten):
    """Nothing is wrong at chunk 1, where the rule makes the state a constant."""
    found = what(by_hand(cut={"v", "s"} - {forgotten}))
    named = [f for f in found if "enters through state" in f]
    assert len(named) == 1 and f"state['{forgotten}']: it needs lax.stop_gradient" in named[0]
    assert any("params['w'] in a block of 2 steps is not the sum" in f for f in found)
    assert not [f for f in found if "outputs" in f or "with temporal" in f.removeprefix("without temporal")]


def test_a_cut_at_the_entry_of_a_block_alone():
    found = what(by_hand(at_entry=True))
    assert found and all("is not the sum of its steps" in f for f in found)


@pytest.mark.slow
def test_a_cut_that_is_always_there():
    assert what(by_hand(always=True)) == [
        "with temporal gradient none enters through the state: all of it is cut always"
    ]


@pytest.mark.slow
def test_outputs_that_depend_on_the_rule_or_the_block():
    def by_rule(params, state, xs, *, temporal_gradient):
        outputs, state = by_hand()(params, state, xs, temporal_gradient=temporal_gradient)
        return outputs * (1.0 if temporal_gradient else 2.0), state

    def by_block(params, state, xs, *, temporal_gradient):
        v, s = lif(state["v"], xs @ params["w"], Neuron(), temporal_gradient=temporal_gradient)
        return s - s.mean(0, keepdims=True), {**state, "v": v}

    assert "temporal_gradient=False changes the outputs" in what(by_rule)
    assert "a block of 2 steps gives other outputs than single steps" in what(by_block)


def test_nan_is_found():
    def apply(params, state, xs, *, temporal_gradient):
        outputs, state = by_hand()(params, state, xs, temporal_gradient=temporal_gradient)
        return outputs * jnp.where(len(xs) > 1, jnp.nan, 1), state

    assert "a block of 2 steps gives other outputs than single steps" in what(apply)


def test_one_step_is_not_enough():
    with pytest.raises(ValueError, match="at least two time steps, got T=1"):
        check_apply(by_hand(), PARAMS, STATE, XS[:1])


def in_type(tree, dtype):
    return jax.tree.map(lambda a: jnp.asarray(a, dtype) if a.dtype == float else a, tree)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision(dtype):
    """What rounds is no fault, and what is not cut is one."""
    params, state, xs = (in_type(tree, dtype) for tree in (PARAMS, STATE, XS))
    check_apply(by_hand(), params, state, xs)
    check_apply(by_hand(), {**params, "number": 3.0}, state, xs)  # a number has no precision of its own
    with pytest.raises(BrokenApply, match="is not the sum of its steps"):
        check_apply(by_hand(cut=("v",)), params, state, xs)


def network_of(block):
    def apply(params, v, xs, *, temporal_gradient):
        v, s = block(v, xs @ params["w"], Neuron(), temporal_gradient=temporal_gradient)
        return s @ params["u"] + params["bias"], v

    return apply


def test_nothing_can_be_told_of_silent_neurons():
    """But that they are cut always: that is no matter of numbers."""
    params = {"w": np.abs(PARAMS["w"]), "u": PARAMS["u"], "bias": np.ones((1, 1, 8))}
    cut_always = lambda *args, temporal_gradient: lif(*args, temporal_gradient=False)
    with pytest.raises(
        ValueError, match=r"can tell nothing.*nothing cuts it.*some spike: take larger inputs"
    ):
        check_apply(network_of(lif), params, STATE["v"], -np.abs(XS))
    check_apply(network_of(lif), params, STATE["v"], XS)
    assert what(network_of(cut_always), STATE["v"], -np.abs(XS), params) == [
        "with temporal gradient none enters through the state: all of it is cut always"
    ]
