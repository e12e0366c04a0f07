"""Which steps SLTT-K takes, and the identities of its gradient, in double precision."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from sltt_jax.rules import sltt, sltt_k
from tests.common import nets
from tests.common.nets import T, assert_close, difference, gradient, net, program

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")
slow_but_one = pytest.mark.parametrize(
    "name", ["two_matrices", *(pytest.param(name, marks=pytest.mark.slow) for name in nets.MODELS)]
)


@dataclasses.dataclass(frozen=True)
class Planned(sltt_k):
    """SLTT-K whose plan is an argument, in the place of the key: one program for all plans."""

    def plan(self, T, key=None):
        return key


def planned_gradient(name, rule, key=None):
    n = net(name)
    return program(name, Planned(1))(n.params, n.state, n.inputs, n.target, rule.plan(T, key))[1]


@slow_but_one
def test_a_plan_may_be_an_argument(name):
    """So that the tests below, which give it, hold for the rule that makes it."""
    grads = gradient(name, sltt_k(3))[1]
    assert_close(planned_gradient(name, sltt_k(3), jax.random.key(nets.KEY)), grads, 1e-13)
    cut = gradient(name, sltt())[1]
    for scale in (1, T / 3):  # it is not SLTT's, nor that but for a factor
        assert max(difference(jax.tree.map(lambda g: scale * g, grads), cut).values()) > 1e-2  # noqa: B023


@slow_but_one
@pytest.mark.parametrize("scale", ["paper", "unbiased"])
def test_all_steps_are_sltt(name, scale):
    rule = sltt_k(T, scale=scale)
    assert_close(planned_gradient(name, rule, jax.random.key(0)), gradient(name, sltt())[1])


@slow_but_one
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize(("scale", "share"), [("paper", True), ("unbiased", False)])
def test_expectation_over_all_subsets(name, k, scale, share):
    subsets = list(itertools.combinations(range(T), k))
    grads = jax.device_get([planned_gradient(name, sltt_k(k, draw=s, scale=scale)) for s in subsets])
    mean = jax.tree.map(lambda *g: sum(g) / len(subsets), *grads)
    expected = jax.tree.map(lambda g: g * (k / T if share else 1), gradient(name, sltt())[1])
    assert_close(mean, expected)


def test_steps():
    assert sltt_k(2, draw="first").selected(5).tolist() == [True, True, False, False, False]
    assert sltt_k(2, draw="last").selected(5).tolist() == [False, False, False, True, True]
    assert sltt_k(2, draw="strided").selected(8).tolist() == [t in (2, 6) for t in range(8)]
    assert sltt_k(2, draw=(0, 3)).selected(5).tolist() == [True, False, False, True, False]
    for T_, k in ((1, 1), (7, 3), (5, 5)):
        assert sltt_k(k, draw="strided").selected(T_).sum() == k
    draw = jax.jit(jax.vmap(lambda key: sltt_k(2).selected(6, key)))
    draws = draw(jax.random.split(jax.random.key(0), 3000))
    assert (draws.sum(1) == 2).all()
    np.testing.assert_allclose(draws.mean(0), 1 / 3, atol=0.035)  # 4 standard deviations
