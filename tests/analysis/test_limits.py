"""What fits into memory, the check for tests of one's own networks, and the clock."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sltt_jax import functional, losses, training
from sltt_jax.analysis import assert_memory_flat, cost, largest_batch, time_update
from sltt_jax.blocks import Repeat
from sltt_jax.data import encoders
from sltt_jax.models import MLP
from sltt_jax.rules import bptt, sltt, sltt_k, tbptt
from tests.common import nets

pytestmark = pytest.mark.usefixtures("quick_codegen")

LOSS = losses.classification()


def counted(total_bytes):
    asked = []

    def f(batch):
        asked.append(batch)
        return total_bytes(batch)

    return f, asked


@pytest.mark.parametrize(("fixed", "each"), [(5e8, 3e7), (0, 1e6), (9.7e8, 5e6)])
def test_largest_batch_of_a_program_that_grows_linearly(fixed, each):
    """Fits: fixed + B each <= 1e9. Four programs or so find it."""
    f, asked = counted(lambda batch: fixed + batch * each)
    assert largest_batch(f, 1.0) == int((1e9 - fixed) // each)
    assert len(asked) <= 6 and len(set(asked)) == len(asked)


def test_largest_batch_of_programs_that_grow_by_leaps():
    """Against every size tried in turn."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = np.cumsum(rng.integers(0, 40, 300) * rng.integers(0, 2, 300) ** rng.integers(1, 9))
        limit = float(rng.integers(1, sizes[-1] + 100))
        f, asked = counted(lambda batch, sizes=sizes: float(sizes[batch - 1]))
        fitting = int((sizes <= limit).sum())
        assert largest_batch(f, limit / 1e9, at_most=300) == fitting
        assert len(asked) <= 25 and (fitting == 0 or fitting in asked)


def test_largest_batch_where_nothing_is_known_of_what_is_too_large():
    """As of a TPU, whose compiler gives up: 4e8 + 1e7 B <= 1e9."""
    f, asked = counted(lambda batch: 4e8 + 1e7 * batch if batch <= 60 else math.inf)
    assert largest_batch(f, 1.0) == 60 and len(asked) <= 10
    assert largest_batch(lambda batch: math.inf, 1.0) == 0


def test_largest_batch_at_its_ends():
    assert largest_batch(lambda batch: 2e9, 1.0) == 0
    assert largest_batch(lambda batch: 2e9 if batch > 1 else 1e9, 1.0) == 1
    f, asked = counted(lambda batch: 1e3)
    assert largest_batch(f, 1.0, at_most=1000) == 1000 and len(asked) < 12
    with pytest.raises(ValueError, match="gigabytes must be > 0, got 0"):
        largest_batch(f, 0)
    with pytest.raises(ValueError, match="at_most must be >= 1, got 0"):
        largest_batch(f, 1.0, at_most=0)


def mlp_of(batch, T=4):
    """A network and abstract arguments of its rules."""
    model = MLP((64,))
    x = jax.ShapeDtypeStruct((batch, 32), jnp.float32)
    params, state = jax.eval_shape(partial(functional.init, model), jax.random.key(0), x)
    return functional.applier(model), params, state, Repeat(x, T), jax.ShapeDtypeStruct((batch,), jnp.int32)


@pytest.mark.slow
def test_largest_batch_of_compiled_programs():
    sizes = {}

    def total_bytes(batch):
        apply, *args = mlp_of(batch)
        sizes[batch] = cost(apply, LOSS, sltt(), *args).total_bytes
        return sizes[batch]

    found = largest_batch(total_bytes, 3e-4)
    assert found > 10 and sizes[found] <= 3e5 < sizes[found + 1]


@pytest.mark.parametrize(
    "rule",
    [sltt(chunk=3), *(pytest.param(rule, marks=pytest.mark.slow) for rule in (sltt_k(1), tbptt(4)))],
    ids=str,
)
def test_flat_memory_passes(rule):
    apply, *args = mlp_of(8)
    assert_memory_flat(apply, LOSS, rule, *args)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [bptt(4), bptt(remat=True)], ids=str)
def test_growing_memory_is_found(rule):
    apply, *args = mlp_of(8)
    with pytest.raises(
        AssertionError, match=r"the temporaries of bptt\(.*\) grow with T: \d+ bytes at T=8, "
    ):
        assert_memory_flat(apply, LOSS, rule, *args)


@pytest.mark.slow
def test_flat_memory_of_a_network_without_flax():
    net = nets.two_matrices()
    assert_memory_flat(net.apply, net.step_loss, sltt(), *net[1:5])


@pytest.mark.slow
def test_a_rule_of_ones_own_that_keeps_every_step_is_found():
    class Naive:
        """SLTT's gradient, but the backward pass waits for the last step."""

        def value_and_grad(self, apply, step_loss):
            spatial = lambda *args, temporal_gradient: apply(*args, temporal_gradient=False)
            return bptt().value_and_grad(spatial, step_loss)

    apply, *args = mlp_of(8)
    with pytest.raises(AssertionError, match=r"Naive .* grow with T"):
        assert_memory_flat(apply, LOSS, Naive(), *args)


@pytest.mark.slow
def test_a_check_that_would_show_nothing_is_refused():
    def constant(params, state, xs, *, temporal_gradient):
        return jnp.broadcast_to(params, (len(xs), 4, 10)), state

    y = jax.ShapeDtypeStruct((4,), jnp.int32)
    args = jnp.zeros(10), jnp.zeros(4), Repeat(jax.ShapeDtypeStruct((4, 3), jnp.float32), 2), y
    with pytest.raises(RuntimeError, match=r"temporaries of bptt\(\) hardly grow with T either \(\d+ bytes"):
        assert_memory_flat(constant, LOSS, sltt(), *args)
    with pytest.raises(ValueError, match=r"T must be two or more numbers of time steps, got \(8, 8\)"):
        assert_memory_flat(constant, LOSS, sltt(), *args, T=(8, 8))


def test_timed_updates_go_on_from_each_other_and_leave_the_state():
    seen = []

    def update(state, by):
        jax.debug.callback(lambda s: seen.append(int(s[0])), state)
        return state + by, state.sum()

    state = jnp.zeros(3, jnp.int32)
    timing = time_update(update, state, 2, repeats=4)
    jax.effects_barrier()
    assert seen == [0, 2, 4, 6, 8]  # the first is not timed
    assert len(timing.each) == 4 and min(timing.each) <= timing.seconds <= max(timing.each)
    assert timing.compile_seconds > 0
    assert state.tolist() == [0, 0, 0]
    compiled = jax.jit(update).lower(state, 2).compile()
    assert time_update(compiled, state, 2, repeats=1).compile_seconds == 0
    with pytest.raises(ValueError, match="repeats must be a whole number >= 1, got 0"):
        time_update(update, state, 2, repeats=0)


@pytest.mark.slow
def test_a_training_update_can_be_timed():
    model, optimizer = MLP((16,)), optax.sgd(0.1)
    encode = encoders.direct(2)
    batch = {"x": np.ones((4, 8), np.float32), "y": np.zeros(4, int)}
    state = training.init_state(model, optimizer, encode, jax.random.key(0), jnp.asarray(batch["x"]))
    update = training.make_update(model, sltt_k(1), LOSS, optimizer, encode)
    program = jax.jit(update, donate_argnums=0).lower(state, batch).compile()
    for given in (update, program):
        timing = time_update(given, state, batch, repeats=2)
        assert len(timing.each) == 2
    assert int(state.step) == 0 and not state.params["Dense_0"]["kernel"].is_deleted()
