"""Updates on four devices: the same as on one, averaged once, and the same on all of them."""

import dataclasses
import functools
import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import train
from tests.common.nets import difference

from sltt_jax import losses, training
from sltt_jax.models import ConvNet
from sltt_jax.neurons import Neuron
from sltt_jax.rules import bptt, sltt, sltt_k

LOSS = losses.classification(mse_weight=0.05)
T, UPDATES = 3, 5
RULES = {"bptt": bptt(), "sltt": sltt(), "sltt_k": sltt_k(2)}
OPTIMIZER = training.make_optimizer("sgd", 0.1, weight_decay=0.01)


def network(net, axis_name=None):
    """A convolutional network without dropout, whose masks differ from device to device."""
    norm, sync = net != "without batch norm", net == "synchronised"
    return ConvNet((4,), 3, Neuron(tau=1.5), norm=norm, axis_name=axis_name if sync else None)


def batches(dtype, count=UPDATES):
    rng = np.random.default_rng(0)
    return [
        {"x": rng.normal(size=(8, 6, 6, 2)).astype(dtype), "y": rng.integers(0, 3, 8)} for _ in range(count)
    ]


def start(net, dtype):
    """A state whose floating point arrays are all of a type."""
    x = batches(dtype)[0]["x"]
    init = jax.jit(training.init_state, static_argnums=(0, 1, 2))
    state = init(network(net), OPTIMIZER, training.images(T), jax.random.key(0), x)
    cast = lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a
    return jax.tree.map(cast, state)


def make(net, rule, axis_name=None):
    model, encode = network(net, axis_name), training.images(T)
    return training.make_update(model, rule, LOSS, OPTIMIZER, encode, axis_name=axis_name)


@functools.cache
def on_one(net, rule, dtype):
    """States before and after the updates on one device, and the metrics of the last."""
    before = state = start(net, dtype)
    update = jax.jit(make(net, RULES[rule]))
    for batch in batches(dtype):
        state, metrics = update(state, batch)
    return before, state, metrics


@functools.cache
def on_four(net, rule, dtype):
    """State and metrics after the same updates on four devices, and the compiled program."""
    devices = training.local_devices(4)
    update = training.parallel(make(net, RULES[rule], training.AXIS), devices, arguments=1, donate=True)
    state = training.replicate(start(net, dtype), devices)
    program = update.lower(state, training.split(batches(dtype)[0], devices)).compile().as_text()
    for batch in batches(dtype):
        state, metrics = update(state, training.split(batch, devices))
    return state, metrics, program


FLOAT32 = pytest.param("float32", 1e-6, marks=pytest.mark.slow)


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-10), FLOAT32])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("net", ["without batch norm", "synchronised"])
def test_four_devices_do_as_one(net, rule, dtype, bound):
    with jax.enable_x64(dtype == "float64"):
        before, one, of_one = on_one(net, rule, dtype)
        four, of_four, _ = on_four(net, rule, dtype)
        changed = difference(one.params, before.params)
        assert min(changed.values()) > 1e-3, changed
        differences = difference(
            (four.params, four.variables, four.opt_state, of_four),
            (one.params, one.variables, one.opt_state, of_one),
        )
        assert all(d <= bound for d in differences.values()), differences
        assert four.step == one.step == UPDATES and four.key == one.key


def test_statistics_of_each_device_are_not_those_of_the_whole(x64):
    """The control of the identity above: there is something to synchronise."""
    _, one, _ = on_one("synchronised", "sltt", "float64")
    four, _, _ = on_four("statistics of each device", "sltt", "float64")
    assert max(difference(four.params, one.params).values()) > 1e-3
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
    state = training.replicate(start("without batch norm", np.float32), devices)
    training.check_replicated(state.params)
    state, metrics = update(state, training.split(batches(np.float32)[0], devices))
    assert np.isfinite(metrics.loss)
    with pytest.raises(RuntimeError, match=r"\['Conv_0'\]\['bias'\] on .*1 differs from .*0"):
        training.check_replicated(state.params)


def all_reduces(program):
    """The all-reduces of a compiled program, those inside of its loops, and those outside."""
    bodies, lines = {}, []
    for line in program.splitlines():
        if found := re.match(r"(?:ENTRY )?%([\w.\-]+) \(.*\{$", line):
            lines = bodies.setdefault(found[1], [])
        lines.append(line)
    calls = r"(?:to_apply|calls|body|condition|true_computation|false_computation)=%([\w.\-]+)"
    branches = r"branch_computations=\{([^}]*)\}"

    def called(name):
        text = "\n".join(bodies[name])
        found = re.findall(calls, text)
        return {*found, *(n.strip(" %") for names in re.findall(branches, text) for n in names.split(","))}

    inside = set()
    todo = {n for body in bodies.values() for n in re.findall(r"body=%([\w.\-]+)", "\n".join(body))}
    assert todo, "the program has no loop"
    while todo:
        inside |= todo
        todo = {n for name in todo for n in called(name)} - inside
    count = lambda names: [
        line for n in names for line in bodies[n] if re.search(r" all-reduce(-start)?\(", line)
    ]
    return count(inside), count(bodies.keys() - inside)


def sizes_of(line):
    """The sizes of the arrays that an all-reduce carries."""
    shapes = re.findall(r"f\d\d\[([\d,]*)\]", re.split(r" all-reduce(?:-start)?\(", line)[0])
    return [math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes]


@pytest.mark.parametrize(
    ("net", "rule", "dtype"),
    [
        *(("without batch norm", rule, "float64") for rule in RULES),
        ("statistics of each device", "sltt", "float64"),
        ("statistics of each device", "sltt", "float32"),
    ],
)
def test_one_all_reduce_an_update_and_none_in_the_loop(net, rule, dtype):
    """It carries every gradient, and with them the running statistics and the loss."""
    with jax.enable_x64(dtype == "float64"):
        state, _, program = on_four(net, rule, dtype)
    inside, outside = all_reduces(program)
    sizes = sorted((sizes_of(line) for line in outside), key=sum)
    # The accuracy is always a float32, which an all-reduce of float64 cannot take along.
    alone = [] if dtype == "float32" else [sizes.pop(0)]
    assert not inside and len(sizes) == 1 and alone in ([], [[1]]), (inside, outside)
    scalars = [1] if alone else [1, 1]
    averaged = [a.size for a in jax.tree.leaves((state.params, state.variables))]
    assert sorted(sizes[0]) == sorted(scalars + averaged)


def test_sharded_arrays_would_take_one_in_every_step():
    """The control: the same update under `jit`, where the compiler places the all-reduces."""
    devices = training.local_devices(4)
    mesh = jax.sharding.Mesh(np.asarray(devices), (training.AXIS,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(training.AXIS))
    state = training.replicate(start("without batch norm", np.float32), devices)
    batch = jax.device_put(batches(np.float32)[0], sharding)
    update = jax.jit(make("without batch norm", sltt()))
    inside, outside = all_reduces(update.lower(state, batch).compile().as_text())
    carried = sum(size for line in inside for size in sizes_of(line))
    assert carried >= sum(p.size for p in jax.tree.leaves(state.params)), (inside, outside)


def test_only_statistics_are_averaged_in_the_loop_when_synchronised(x64):
    state, _, program = on_four("synchronised", "sltt", "float64")
    inside, outside = all_reduces(program)
    channels, parameters = 4, sum(p.size for p in jax.tree.leaves(state.params))
    assert inside and all(size == channels for line in inside for size in sizes_of(line))
    carried = [sum(sizes_of(line)) for line in outside]
    assert sum(size > parameters for size in carried) == 1, outside


@dataclasses.dataclass(frozen=True)
class Recorded(sltt_k):
    """SLTT-K that tells which steps it draws on which device."""

    apart: bool = False

    def selected(self, T, key=None):
        device = jax.lax.axis_index(training.AXIS)
        steps = super().selected(T, jax.random.fold_in(key, device) if self.apart else key)
        jax.debug.callback(
            lambda device, steps: DRAWS.append((int(device), tuple(map(int, steps)))), device, steps
        )
        return steps


DRAWS = []


@pytest.mark.parametrize("apart", [False, True])
def test_sltt_k_draws_the_same_steps_on_every_device(apart):
    devices = training.local_devices(4)
    update = training.parallel(
        make("without batch norm", Recorded(1, apart=apart), training.AXIS), devices, arguments=1
    )
    state = training.replicate(start("without batch norm", np.float32), devices)
    draws = []
    for batch in batches(np.float32, 6):
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

    model = ConvNet((4,), 3, Neuron(tau=1.5), norm=False, dropout=0.5)
    encode = training.images(1, augmentation=augmentation)
    update = training.parallel(
        training.make_update(model, sltt(), step_loss, OPTIMIZER, encode, axis_name=training.AXIS),
        devices, arguments=1,
    )  # fmt: skip
    batch = batches(np.float32)[0]
    equal = {"x": batch["x"][:1].repeat(4, 0), "y": batch["y"][:1].repeat(4, 0)}
    state = training.replicate(start("without batch norm", np.float32), devices)
    update(state, training.split(equal, devices))
    jax.effects_barrier()
    assert len(set(drawn)) == 4 and len(set(losses_of_devices)) > 1


def test_evaluation_on_four_devices_is_that_on_one():
    devices = training.local_devices(4)
    net = "statistics of each device"
    state = start(net, np.float32)
    batch = {**batches(np.float32)[0], "mask": np.asarray([1, 1, 1, 1, 1, 0, 0, 0], np.float32)}
    build = functools.partial(training.make_evaluate, network(net), LOSS, training.images(T))
    one = jax.jit(build())(state.params, state.variables, batch)
    evaluate = training.parallel(build(axis_name=training.AXIS), devices, arguments=2)
    parts = [training.replicate(tree, devices) for tree in (state.params, state.variables)]
    four = evaluate(*parts, training.split(batch, devices))
    assert four.samples == 5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), four, one)


@pytest.mark.parametrize(
    ("batch_size", "parts", "nearest"), [(30, 4, "28 or 32"), (3, 4, "4"), (127, 8, "120 or 128")]
)
def test_a_batch_that_cannot_be_shared(batch_size, parts, nearest):
    training.check_divides(32, 4)
    message = f"batch_size {batch_size} cannot be shared by {parts} devices; the nearest that can: {nearest}$"
    with pytest.raises(ValueError, match=message):
        training.check_divides(batch_size, parts)


def test_number_of_devices():
    assert training.local_devices(2) == training.local_devices()[:2] == jax.local_devices()[:2]
    for count in (0, 5):
        with pytest.raises(ValueError, match=rf"devices must be in 1\.\.4, .* got {count}"):
            training.local_devices(count)


def run(monkeypatch, workdir, *args):
    settings = ("--features", 16, "--T", 2, "--epochs", 1, "--train-samples", 128, "--test-samples", 64)
    args = ("train", "digits_mlp", *settings, *args, "--workdir", workdir)
    monkeypatch.setattr(sys, "argv", [*map(str, args)])
    status = train.main()
    return status, json.loads((workdir / "summary.json").read_text()) if status == 0 else None


def test_devices_of_a_run(monkeypatch, tmp_path, capsys):
    summaries = {}
    for count in (1, 4):
        status, summaries[count] = run(monkeypatch, tmp_path / str(count), "--devices", count)
        assert status == 0 and summaries[count]["devices"] == count
    # Sums are in another order; the samples, their order and the start are the same.
    for name in ("train_loss", "test_loss"):
        assert summaries[4][name] == pytest.approx(summaries[1][name], rel=1e-5)
    status, _ = run(monkeypatch, tmp_path / "no", "--devices", 4, "--batch-size", 30)
    assert status == 1 and not (tmp_path / "no").exists()
    assert "batch_size 30 cannot be shared by 4 devices; the nearest that can: 28 or 32" in (
        capsys.readouterr().err
    )
    # A run begun on four devices is gone on with on one.
    status, again = run(monkeypatch, tmp_path / "4", "--devices", 1)
    assert status == 0 and again["parameters_sha256"] == summaries[4]["parameters_sha256"]
