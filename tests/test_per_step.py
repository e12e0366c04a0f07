"""Targets of each step by itself, `PerStep`, in every rule, in double precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import PerStep, Repeat, bptt, losses, sltt, sltt_k, stream, tbptt
from sltt_jax.analysis import agreement, assert_memory_flat, cost_over_time, step_gradients
from tests.common.nets import BATCH, KEY, T, assert_close, difference, net, program

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")

# Blocks of 4 leave one of 2.
CUT = [sltt(), sltt(2), sltt(4), sltt(T), sltt_k(T, draw="last")]
EXACT = [bptt(), bptt(4), bptt(T), bptt(4, remat=True), tbptt(T)]

STEP_LOSS = losses.classification(mse_weight=0.05, mse_target="one_hot")


@functools.cache
def target(weights=True):
    """Labels at every step, of which some do not count; these are out of range, so that it would be seen."""
    rng = np.random.default_rng(5)
    y, weight = rng.integers(0, 3, (T, BATCH)), rng.uniform(0.5, 2, (T, BATCH)) * (np.arange(T) > 1)[:, None]
    weight[3, 1:] = 0
    return {"y": np.where(weight == 0, -1, y), "weight": weight} if weights else y


@functools.cache
def compiled(rule):
    return jax.jit(rule.value_and_grad(net("two_matrices").apply, STEP_LOSS))


def gradient(rule, y):
    n = net("two_matrices")
    return compiled(rule)(n.params, n.state, n.inputs, y, jax.random.key(KEY))


@functools.cache
def by_hand(temporal):
    """Loss and gradient of a loop over the steps, with the losses of samples that do not count left out."""
    n = net("two_matrices")

    @jax.jit
    @jax.value_and_grad
    def loss(params):
        state, total = n.state, 0.0
        for t in range(T):
            outputs, state = n.apply(params, state, n.inputs[t : t + 1], temporal_gradient=temporal)
            for b in np.flatnonzero(target()["weight"][t]):
                o, label, weight = outputs[0, b], int(target()["y"][t, b]), target()["weight"][t, b]
                entropy = jnp.log(jnp.exp(o).sum()) - o[label]
                total += weight * (0.95 * entropy + 0.05 * jnp.mean((o - np.eye(3)[label]) ** 2))
        return total / (T * BATCH)

    return loss(n.params)


def some_slow(rules, fast):
    """All rules as parameters of a test, those that are not among `fast` in the slow suite."""
    return [rule if rule in fast else pytest.param(rule, marks=pytest.mark.slow) for rule in rules]


@pytest.mark.parametrize(
    "rule", some_slow([*CUT, *EXACT], [sltt(), sltt(4), bptt(), bptt(4, remat=True)]), ids=str
)
def test_every_rule_is_the_loop_written_out(rule):
    (loss, aux), grads = gradient(rule, PerStep(target()))
    expected, expected_grads = by_hand(rule in EXACT)
    np.testing.assert_allclose([loss, aux.losses.mean()], expected, rtol=1e-13)
    assert_close(grads, expected_grads)
    assert aux.losses[0] == aux.losses[1] == 0 and min(aux.losses[2:]) > 0


def test_a_step_has_its_own_target_and_no_other():
    """The control: labels one step late are another task."""
    y = target(weights=False)
    grads, late = (gradient(sltt(4), PerStep(labels))[1] for labels in (y, np.roll(y, 1, axis=0)))
    assert min(difference(late, grads).values()) > 1e-2


@pytest.mark.parametrize(
    ("rule", "repeat"),
    [
        (tbptt(4), False),
        (sltt_k(3), False),
        *(pytest.param(rule, False, marks=pytest.mark.slow) for rule in (bptt(4), bptt(remat=True), sltt())),
        pytest.param(sltt(), True, marks=pytest.mark.slow),
        (sltt(4), True),
    ],
    ids=str,
)
def test_the_same_target_at_every_step_is_a_plain_one(rule, repeat):
    n = net("two_matrices")
    inputs = Repeat(n.inputs[0], T) if repeat else n.inputs
    plain, of_steps = (
        program("two_matrices", rule)(n.params, n.state, inputs, y, jax.random.key(KEY))
        for y in (n.target, PerStep(jnp.broadcast_to(n.target, (T, *n.target.shape))))
    )
    assert_close(of_steps, plain, 1e-13)


@pytest.mark.parametrize("rule", some_slow([sltt(), sltt(4), tbptt(4), sltt_k(3)], [sltt(4)]), ids=str)
def test_a_stream_takes_the_targets_of_a_block_at_a_time(rule):
    n, size = net("two_matrices"), rule.block_steps
    seen = []

    def step_loss(outputs, y):
        seen.append(y["y"].shape)
        return STEP_LOSS(outputs, y)

    blocks = (np.asarray(n.inputs[t : t + size]) for t in range(0, T, size))
    f = stream(rule, n.apply, step_loss)
    found = f(n.params, n.state, blocks, PerStep(target()), jax.random.key(KEY), T=T)
    assert_close(found, gradient(rule, PerStep(target())), 1e-12)
    assert set(seen) == {(BATCH,)}


@pytest.mark.slow
def test_sequences_of_different_lengths_are_those_alone():
    """A batch of sequences filled up, normalised, against each by itself over its own steps."""
    n, y, lengths = net("two_matrices"), target(weights=False), [6, 2, 5, 0]
    weight = losses.length_weights(jnp.asarray(lengths), T)
    f = lambda state, inputs, y: compiled(sltt())(n.params, state, inputs, PerStep(y))
    (loss, _), grads = f(n.state, n.inputs, {"y": y, "weight": losses.normalised(weight.astype(float))})
    alone = []
    for b, length in enumerate(lengths[:3]):
        state = [v[b : b + 1] for v in n.state]
        (own_loss, _), own = f(state, n.inputs[:length, b : b + 1], y[:length, b : b + 1])
        alone.append(jax.tree.map(lambda a: a * length / sum(lengths), (own_loss, own)))  # noqa: B023
    assert_close((loss, grads), jax.tree.map(lambda *a: sum(a), *alone), 1e-12)


@pytest.mark.slow
def test_parts_of_steps_and_agreement():
    n = net("two_matrices")
    y = PerStep(target())
    args = n.params, n.state, n.inputs, y
    parts = jax.jit(step_gradients(bptt(), n.apply, STEP_LOSS))(*args)
    assert_close(jax.tree.map(lambda g: g.sum(0), parts), gradient(bptt(), y)[1])
    found = jax.jit(agreement({"sltt": sltt(), "all": tbptt(T)}, n.apply, STEP_LOSS))(*args)
    assert found["all"].overall.relative_error < 1e-12 < 1e-2 < found["sltt"].overall.relative_error


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "tolerance"), [(sltt(), 0), (sltt(2), 0.12)], ids=str)
def test_memory_is_flat(rule, tolerance):
    """But for the numbers of the blocks, 8 bytes each, which are many beside so small a network."""
    n = net("two_matrices")
    args = n.params, n.state, n.inputs, PerStep(target())
    assert_memory_flat(n.apply, STEP_LOSS, rule, *args, tolerance=tolerance)
    costs = cost_over_time(n.apply, STEP_LOSS, rule, *args, T=(8, 64))
    of_step = n.inputs[0].nbytes + sum(a[0].nbytes for a in target().values())
    assert costs[64].argument_bytes - costs[8].argument_bytes == 56 * of_step


def test_under_shard_map():
    n, devices, y = net("two_matrices"), 4, PerStep(target())
    mesh = jax.make_mesh((devices,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    batch = jax.sharding.PartitionSpec(None, "devices")

    def part(inputs, y):
        params = jax.lax.pcast(n.params, "devices", to="varying")
        inner = {**y.target, "weight": losses.normalised(y.target["weight"], "devices")}
        state = [v[: BATCH // devices] for v in n.state]
        (loss, _), grads = sltt(4).value_and_grad(n.apply, STEP_LOSS)(params, state, inputs, PerStep(inner))
        return jax.lax.pmean((loss, grads), "devices")

    everywhere = jax.sharding.PartitionSpec()
    found = jax.jit(jax.shard_map(part, mesh=mesh, in_specs=batch, out_specs=everywhere))(n.inputs, y)
    whole = {**target(), "weight": losses.normalised(jnp.asarray(target()["weight"]))}
    (loss, _), grads = gradient(sltt(4), PerStep(whole))
    assert_close(found, (loss, grads), 1e-12)


@pytest.mark.parametrize("rule", [sltt(), sltt(2), sltt_k(1, draw="last"), tbptt(2), bptt()], ids=str)
@pytest.mark.parametrize(
    ("target", "message"),
    [
        (np.ones((4, 2, 3)), r"target \(4, 2, 3\) has a time axis, but a plain .* all T=4 steps; PerStep\("),
        ({"y": np.ones((4, 2, 7))}, r"target \(4, 2, 7\) has a time axis.* PerStep\(target\) is one of each"),
        (PerStep(np.ones((5, 2, 3))), r"but \(5, 2, 3\) has 5 time steps and the inputs T=4"),
        (PerStep({"y": np.ones((4, 2, 3)), "w": np.ones((2, 4))}), r"\(2, 4\) has 2 time steps .* T=4"),
        (PerStep(0.0), r"but \(\) has no time axis and the inputs T=4"),
    ],
)
def test_a_time_axis_that_is_not_the_inputs_or_not_said(rule, target, message):
    apply = lambda params, state, xs, *, temporal_gradient: (xs * params, state)
    f = rule.value_and_grad(apply, lambda o, y: jnp.mean(o))
    with pytest.raises(ValueError, match=message):
        f(jnp.ones((1, 1, 3)), (), jnp.ones((4, 2, 3)), target)
    if rule != bptt():
        blocks = (np.ones((rule.block_steps, 2, 3)) for _ in range(4 // rule.block_steps))
        with pytest.raises(ValueError, match=message):
            stream(rule, apply, lambda o, y: jnp.mean(o))(jnp.ones((1, 1, 3)), (), blocks, target, T=4)


@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (4, 3), (3, 2, 3), (4, 2), (4, 3, 3), (4, 2, 3, 1)])
def test_plain_targets_that_are_none_of_steps(shape):
    apply = lambda params, state, xs, *, temporal_gradient: (xs * params, state)
    f = sltt().value_and_grad(apply, lambda o, y: jnp.mean(o))
    assert f(jnp.ones((1, 1, 3)), (), jnp.ones((4, 2, 3)), np.ones(shape))[0][0] == 1
