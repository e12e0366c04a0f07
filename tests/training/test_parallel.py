"""Updates on four devices: the same as on one, and the same on all of them."""

import dataclasses
import functools
import itertools

import chex
import jax
import numpy as np
import pytest

from sltt_jax import training
from sltt_jax.data import encoders
from sltt_jax.models import MLP
from sltt_jax.neurons import Neuron
from sltt_jax.rules import sltt, sltt_k
from tests.common.updates import (
    LOSS,
    OPTIMIZER,
    RULES,
    UPDATES,
    T,
    batches,
    encoder,
    make,
    network,
    on_four,
    on_one,
    start,
)

pytestmark = pytest.mark.usefixtures("quick_compile")


def changes(a, b):
    """The largest change of every array."""
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return [float(abs(np.asarray(x) - np.asarray(y)).max()) for x, y in leaves]


BOUNDS = {"float64": 1e-10, "float32": 1e-5}
FAST = {("without batch norm", "sltt", "float64")}


@pytest.mark.parametrize(
    ("net", "rule", "dtype"),
    [
        pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow)
        for case in itertools.product(("without batch norm", "synchronised"), RULES, BOUNDS)
    ],
)
def test_four_devices_do_as_one(net, rule, dtype):
    with jax.enable_x64(dtype == "float64"):
        one, of_one = on_one(net, rule, dtype)
        four, of_four, _ = on_four(net, rule, dtype)
        assert min(changes(one.params, start(net, dtype).params)) > 1e-3
        assert four.step == one.step == UPDATES and four.key == one.key
        parts = lambda state, metrics: (state.params, state.variables, state.opt_state, metrics)
        chex.assert_trees_all_close(
            parts(four, of_four), parts(one, of_one), rtol=BOUNDS[dtype], atol=BOUNDS[dtype]
        )


@pytest.mark.slow
def test_statistics_of_each_device_are_not_those_of_the_whole(x64):
    """The control of the identity above: there is something to synchronise."""
    one, _ = on_one("synchronised", "sltt", "float64")
    four, _, _ = on_four("statistics of each device", "sltt", "float64")
    assert max(changes(four.params, one.params)) > 1e-3
    training.check_replicated(four.variables)  # averaged over the devices


@pytest.mark.parametrize("rule", RULES)
def test_all_devices_hold_the_same_bits(x64, rule):
    state, metrics, _ = on_four("without batch norm", rule, "float64")
    for tree in (state.params, state.opt_state, metrics):
        training.check_replicated(tree)
        for leaf in jax.tree.leaves(tree):
            assert len(leaf.addressable_shards) == 4 and leaf.is_fully_replicated
            first, *others = (np.asarray(shard.data) for shard in leaf.addressable_shards)
            assert all(np.array_equal(first, other) for other in others)


def test_a_forgotten_average_is_found(monkeypatch):
    """`pmap` alone does not find it: it hands out what its first device holds."""
    monkeypatch.setattr(jax.lax, "pmean", lambda tree, axis_name: tree)
    devices = training.local_devices(4)
    update = training.parallel(make("without batch norm", sltt(), training.AXIS), devices, arguments=1)
    state = training.replicate(start("without batch norm", "float32"), devices)
    training.check_replicated(state.params)
    state, metrics = update(state, training.split(batches("float32")[0], devices))
    assert np.isfinite(metrics.loss)
    with pytest.raises(RuntimeError, match=r"\['Dense_0'\]\['bias'\] on .*1 differs from .*0"):
        training.check_replicated(state.params)


@dataclasses.dataclass(frozen=True)
class Recorded(sltt_k):
    """SLTT-K that tells which steps it draws on which device."""

    apart: bool = False

    def plan(self, T, key=None):
        device = jax.lax.axis_index(training.AXIS)
        plan = super().plan(T, jax.random.fold_in(key, device) if self.apart else key)
        jax.debug.callback(
            lambda device, steps: DRAWS.append((int(device), tuple(map(int, steps)))), device, plan.backward
        )
        return plan


DRAWS = []


@pytest.mark.slow
@pytest.mark.parametrize("apart", [False, True])
def test_sltt_k_draws_the_same_steps_on_every_device(apart):
    devices = training.local_devices(4)
    update = training.parallel(
        make("without batch norm", Recorded(1, apart=apart), training.AXIS), devices, arguments=1
    )
    state = training.replicate(start("without batch norm", "float32"), devices)
    draws = []
    for batch in batches("float32", 6):
        DRAWS.clear()
        state, _ = update(state, training.split(batch, devices))
        jax.effects_barrier()
        assert sorted(device for device, _ in DRAWS) == [0, 1, 2, 3]
        assert all(len(steps) == T and sum(steps) == 1 for _, steps in DRAWS)
        draws.append({steps for _, steps in DRAWS})
    if apart:  # the control: if each drew its own, it would be seen
        assert max(map(len, draws)) > 1
    else:
        assert all(len(steps) == 1 for steps in draws)
        assert len(set.union(*draws)) > 1, "the same steps at every update"


def test_every_device_draws_its_own_augmentation_and_dropout():
    """Of equal samples all devices would make the same, were it not for what they draw."""
    devices = training.local_devices(4)
    drawn, losses_of_devices = [], []

    def augmentation(key, x):
        jax.debug.callback(lambda n: drawn.append(float(n)), jax.random.normal(key))
        return x

    def step_loss(outputs, target):
        loss = LOSS(outputs, target)
        jax.debug.callback(lambda n: losses_of_devices.append(float(n)), loss)
        return loss

    # Many neurons spike at such a threshold, and so the masks are seen.
    model = MLP((8,), 3, Neuron(tau=1.5, v_threshold=0.1), dropout=0.5)
    encode = encoders.flat(encoders.direct(1, augmentation=augmentation))
    update = training.parallel(
        training.make_update(model, sltt(), step_loss, OPTIMIZER, encode, axis_name=training.AXIS),
        devices, arguments=1,
    )  # fmt: skip
    batch = batches("float32")[0]
    equal = {"x": batch["x"][:1].repeat(4, 0), "y": batch["y"][:1].repeat(4, 0)}
    state = training.replicate(start("without batch norm", "float32"), devices)
    update(state, training.split(equal, devices))
    jax.effects_barrier()
    (
        drawn.clear(),
        losses_of_devices.clear(),
    )  # the loss of made-up outputs, by which it is checked, is another
    update(state, training.split(equal, devices))
    jax.effects_barrier()
    assert len(set(drawn)) == 4 and len(set(losses_of_devices)) > 1


def test_evaluation_on_four_devices_is_that_on_one():
    devices = training.local_devices(4)
    net = "without batch norm"
    state = start(net, "float32")
    batch = {**batches("float32")[0], "mask": np.asarray([1, 1, 1, 1, 1, 0, 0, 0], np.float32)}
    build = functools.partial(training.make_evaluate, network(net), LOSS, encoder(net))
    one = jax.jit(build())(state.params, state.variables, batch)
    evaluate = training.parallel(build(axis_name=training.AXIS), devices, arguments=2)
    parts = [training.replicate(tree, devices) for tree in (state.params, state.variables)]
    four = evaluate(*parts, training.split(batch, devices))
    assert four.samples == 5
    chex.assert_trees_all_close(four, one, rtol=1e-6)


@pytest.mark.parametrize(
    ("batch_size", "parts", "nearest"), [(30, 4, "28 or 32"), (3, 4, "4"), (127, 8, "120 or 128")]
)
def test_a_batch_that_cannot_be_shared(batch_size, parts, nearest):
    training.check_divides(32, 4)
    message = f"batch_size {batch_size} cannot be shared by {parts} devices; the nearest that can: {nearest}$"
    with pytest.raises(ValueError, match=message):
        training.check_divides(batch_size, parts)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((6, 6), "batch_size 6 cannot be shared by 4 devices; the nearest that can: 4 or 8$"),
        ((8, 4), r"all arrays of a batch must be \[B, ...\] of one B, got \[\(4,\), \(8,\)\]"),
    ],
)
def test_a_batch_that_cannot_be_split(sizes, message):
    batch = {name: np.zeros((size, 5)) for name, size in zip("xy", sizes, strict=True)}
    with pytest.raises(ValueError, match=message):
        training.split(batch, training.local_devices(4))


def test_a_whole_state_may_be_checked():
    """With its typed key, also where that one differs."""
    devices = training.local_devices(4)
    state = training.replicate(start("without batch norm", "float32"), devices)
    training.check_replicated(state)
    keys = [jax.device_put(jax.random.key(n), d) for n, d in zip((0, 0, 0, 1), devices, strict=True)]
    apart = jax.make_array_from_single_device_arrays((), state.key.sharding, keys)
    with pytest.raises(RuntimeError, match=r"\.key on .*3 differs from .*0"):
        training.check_replicated(state._replace(key=apart))


def test_number_of_devices():
    assert training.local_devices(2) == training.local_devices()[:2] == jax.local_devices()[:2]
    for count in (0, 5):
        with pytest.raises(ValueError, match=rf"devices must be in 1\.\.4, .* got {count}"):
            training.local_devices(count)
