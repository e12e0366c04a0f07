"""Rules of a user's own: subclasses of `BlockRule`, held against their definitions by autodiff."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import BlockRule, PerStep, sltt
from sltt_jax.block_rule import Plan, block_forward, block_gradient
from sltt_jax.blocks import check_at_most_T, run
from sltt_jax.streaming import stream
from tests.common.nets import T, assert_close, difference, gradient, net, program

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")


@dataclasses.dataclass(frozen=True)
class every_other(BlockRule):
    """SLTT at the even steps alone."""

    @property
    def block_steps(self):
        return 1

    def plan(self, T, key=None):
        return Plan(jnp.arange(T) % 2 == 0, 1 / T)

    def block(self, apply, step_loss):
        gradient = block_gradient(apply, step_loss, temporal_gradient=False)
        forward = block_forward(apply, step_loss)

        def block(params, target, carry, xs, backward):
            return jax.lax.cond(backward[0], gradient, forward, params, target, carry, xs)

        return block

    def backward_share(self, T):
        return (T + 1) // 2 / T


@dataclasses.dataclass(frozen=True)
class fading(BlockRule):
    """SLTT whose sum of gradients loses a part of itself with every block of `chunk` steps."""

    kept: float
    chunk: int = 1

    @property
    def block_steps(self):
        return self.chunk

    def plan(self, T, key=None):
        check_at_most_T("chunk", self.chunk, T)
        return Plan(None, 1.0)

    def block(self, apply, step_loss):
        gradient = block_gradient(apply, step_loss, temporal_gradient=False)

        def block(params, target, carry, xs, backward=None):
            faded = jax.tree.map(lambda g: self.kept * g, carry.grads)
            return gradient(params, target, carry._replace(grads=faded), xs)

        return block


# What each step's loss counts in the gradient; blocks of 4 leave one of 2.
RULES = [
    (every_other(), np.asarray([1, 0, 1, 0, 1, 0]) / T),
    (fading(0.5), 0.5 ** np.arange(T)[::-1]),
    (fading(0.5, chunk=4), np.asarray([0.5] * 4 + [1] * 2)),
]


@pytest.mark.parametrize(
    ("name", "rule", "weights"),
    [
        *(("two_matrices", *case) for case in RULES),
        pytest.param("mlp", *RULES[0], marks=pytest.mark.slow),
    ],
    ids=lambda value: "" if isinstance(value, np.ndarray) else str(value),
)
def test_it_is_its_definition_and_can_stream(name, rule, weights):
    n = net(name)

    @jax.jit
    @jax.grad
    def definition(params, weights):
        outputs, _ = run(n.apply, params, n.state, n.inputs, temporal_gradient=False)
        return weights @ jax.vmap(n.step_loss, (0, None))(outputs, n.target)

    (loss, aux), grads = gradient(name, rule)
    assert_close(grads, definition(n.params, weights))
    (_, expected), cut = gradient(name, sltt())
    assert_close(aux, expected, 1e-13)  # its forward pass is that of every rule
    np.testing.assert_allclose(loss, aux.losses.mean(), rtol=1e-15)
    assert max(difference(grads, cut).values()) > 1e-2

    blocks = (np.asarray(n.inputs[t : t + rule.block_steps]) for t in range(0, T, rule.block_steps))
    streamed = stream(rule, n.apply, n.step_loss)(n.params, n.state, blocks, n.target, T=T)
    assert_close(streamed, ((loss, aux), grads), 1e-12)


@pytest.mark.parametrize(("rule", "weights"), [RULES[0], RULES[2]], ids=["every_other", "fading"])
def test_it_takes_a_target_of_each_step_without_a_word_of_its_own(rule, weights):
    n = net("two_matrices")
    y = PerStep(np.random.default_rng(2).uniform(size=(T, *n.target.shape)))

    @jax.jit
    @jax.grad
    def definition(params):
        outputs, _ = run(n.apply, params, n.state, n.inputs, temporal_gradient=False)
        return weights @ jax.vmap(n.step_loss)(outputs, y.target)

    found = program("two_matrices", rule)(n.params, n.state, n.inputs, y)
    assert_close(found[1], definition(n.params))
    blocks = (np.asarray(n.inputs[t : t + rule.block_steps]) for t in range(0, T, rule.block_steps))
    streamed = stream(rule, n.apply, n.step_loss)(n.params, n.state, blocks, y, T=T)
    assert_close(streamed, found, 1e-12)


def test_its_name_its_share_and_what_it_refuses():
    assert str(every_other()) == "every_other" and str(fading(0.5, chunk=4)) == "fading(0.5, chunk=4)"
    assert every_other().backward_share(5) == 3 / 5 and fading(0.5).backward_share(5) == 1
    n = net("two_matrices")
    with pytest.raises(ValueError, match="chunk=7 is more than the T=6"):
        program("two_matrices", fading(0.5, chunk=7))(n.params, n.state, n.inputs, n.target)


def test_a_rule_without_its_three_parts_is_refused():
    @dataclasses.dataclass(frozen=True)
    class unfinished(BlockRule):
        def plan(self, T, key=None):
            return Plan(None, 1 / T)

    with pytest.raises(TypeError, match=r"abstract .*block.*block_steps"):
        unfinished()  # pyright: ignore[reportAbstractUsage]
