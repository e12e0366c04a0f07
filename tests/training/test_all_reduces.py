"""What the compiled programs of four devices send to one another: one average an update, after the loop."""

import math
import re

import jax
import numpy as np
import pytest

from sltt_jax import training
from sltt_jax.rules import sltt
from tests.common.updates import RULES, batches, make, on_four, start

pytestmark = pytest.mark.usefixtures("quick_compile")


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
        ("statistics of each device", "sltt", "float64"),
        *(pytest.param("without batch norm", rule, "float64", marks=pytest.mark.slow) for rule in RULES),
        pytest.param("statistics of each device", "sltt", "float32", marks=pytest.mark.slow),
        ("without batch norm", "sltt", "float32"),
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
    state = training.replicate(start("without batch norm", "float32"), devices)
    batch = jax.device_put(batches("float32")[0], sharding)
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
