"""NIR graphs from elsewhere: what is wrong in them is an error that names the node."""

import math
import re

import numpy as np
import pytest

nir = pytest.importorskip("nir", reason="the extra nir is not installed")

from sltt_jax.nir import from_nir, model_from_nir  # noqa: E402
from sltt_jax.nir.graphs import FIELDS  # noqa: E402

ONES = np.ones(4)


def lif(shape=(4,), **fields):
    whole = {"tau": 2e-4, "r": 1.0, "v_leak": 0.0, "v_threshold": 1.0, "v_reset": 0.0} | fields
    return nir.LIF(
        **{name: np.full(shape, value) if np.ndim(value) == 0 else value for name, value in whole.items()}
    )


def nodes(**others):
    """A whole network, with `others` in the place of nodes, or without them if they are None."""
    found = {
        "input": nir.Input({"input": np.array([3])}),
        "fc": nir.Affine(np.ones((4, 3), np.float32), np.ones(4, np.float32)),
        "lif": lif(),
        "out": nir.Linear(np.ones((2, 4), np.float32)),
        "output": nir.Output({"output": np.array([2])}),
    }
    return {name: node for name, node in (found | others).items() if node is not None}


CHAIN = [("input", "fc"), ("fc", "lif"), ("lif", "out"), ("out", "output")]
BACK = [("lif", "w"), ("w", "lif")]


def graph(edges=CHAIN, **others):
    return nir.NIRGraph(nodes(**others), list(edges), type_check=False)


def conv(**fields):
    whole = dict(
        input_shape=None,
        weight=np.ones((2, 1, 3, 3)),
        stride=1,
        padding=1,
        dilation=1,
        groups=1,
        bias=np.ones(2),
    )
    made = nir.Conv2d(**whole)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def of_map(node, output=(1,)):
    """A network whose one node is given a map of one channel."""
    ends = {
        "input": nir.Input({"input": np.array([1, 6, 6])}),
        "output": nir.Output({"output": np.array(output)}),
    }
    return nir.NIRGraph(ends | {"node": node}, [("input", "node"), ("node", "output")], type_check=False)


class Own:
    """Type of a node that NIR does not have."""


def inside(depth):
    found = graph()
    for _ in range(depth):
        found = graph(lif=found)
    return found


two = lambda n: np.array([n, n])
WRONG = {
    "unknown type": (graph(lif=Own()), "node 'lif' is of the unknown type 'Own'; known: Input"),
    "delay": (graph(lif=nir.Delay(ONES)), "node 'lif' is of the unknown type 'Delay'"),
    "edge to nothing": (graph([*CHAIN, ("lif", "gone")]), "edge .'lif', 'gone'. names 'gone'"),
    "edge of three": (graph([*CHAIN, ("lif", "out", "fc")]), "an edge must be from one node to another"),
    "edge twice": (graph([*CHAIN, CHAIN[0]]), "edge .'input', 'fc'. is there twice"),
    "slash": (graph(**{"a/b": lif()}), "a name without slashes, got 'a/b'"),
    "no input": (graph(input=None, edges=CHAIN[1:]), "must have one Input node, got none"),
    "two outputs": (
        graph([*CHAIN, ("lif", "more")], more=nir.Output({"output": np.array([4])})),
        r"must have one Output node, got \['output', 'more'\]",
    ),
    "given nothing": (graph([*CHAIN[1:], ("input", "out")]), "node 'fc' .Affine. is given nothing"),
    "leads nowhere": (graph([*CHAIN, ("fc", "side")], side=lif()), "node 'side' .LIF. leads nowhere"),
    "circle": (graph([*CHAIN, ("out", "fc")]), "round in a circle, among 'fc', 'lif', 'out'"),
    "circle of one": (graph([*CHAIN, ("lif", "lif")]), "round in a circle, among 'lif'"),
    "two ways back": (
        graph(
            [*CHAIN, *BACK, ("lif", "w2"), ("w2", "lif")],
            w=nir.Linear(np.ones((4, 4))),
            w2=nir.Linear(np.ones((4, 4))),
        ),
        "node 'lif' has two nodes back to itself, 'w' and 'w2'",
    ),
    "way back of other size": (
        graph([*CHAIN, *BACK], w=nir.Linear(np.ones((4, 3)))),
        r"node 'w' .Linear. must have weights \(4, 4\) back to 'lif'",
    ),
    "deep": (inside(10), "graphs lie more than 8 deep"),
    "inner graph without input": (
        graph(lif=graph(input=None, edges=CHAIN[1:])),
        "the graph 'lif' must have one Input node, got none",
    ),
    "weights of another size": (
        graph(fc=nir.Linear(np.ones((4, 5)))),
        r"node 'fc' .Linear. must have weights \[outputs, 3\].*got \(4, 5\)",
    ),
    "weights of three axes": (
        graph(fc=nir.Linear(np.ones((4, 3, 1)))),
        "node 'fc' .Linear. must have weights",
    ),
    "bias of another size": (
        graph(fc=nir.Affine(np.ones((4, 3)), np.ones(3))),
        "node 'fc' .Affine. must have 4 numbers as its bias",
    ),
    "nan": (
        graph(fc=nir.Linear(np.full((4, 3), np.nan))),
        "node 'fc' .Linear. must have finite numbers as its weight, got nan",
    ),
    "text": (
        graph(fc=nir.Linear(np.full((4, 3), "a"))),
        "node 'fc' .Linear. must have numbers as its weight",
    ),
    "empty": (graph(fc=nir.Linear(np.ones((0, 3)))), "node 'fc' .Linear. must have 1 to .* numbers"),
    "huge": (
        graph(fc=nir.Linear(np.broadcast_to(np.float32(0), (2**27, 3)))),
        "node 'fc' .Linear. must have 1 to 268,435,456 numbers",
    ),
    "huge input": (
        graph(input=nir.Input({"input": np.array([2**40])})),
        "node 'input' .Input. must have at most",
    ),
    "input of no size": (
        graph(input=nir.Input({"input": np.array([0])})),
        "node 'input' .Input. must have outputs",
    ),
    "input of half a size": (
        graph(input=nir.Input({"input": np.array([2.5])})),
        r"node 'input' .Input. must have outputs .*2.5",
    ),
    "input unknown": (
        graph(input=nir.Input({"input": None})),
        "node 'input' .Input. must say what shape the input has",
    ),
    "output of another size": (
        graph(output=nir.Output({"output": np.array([5])})),
        r"node 'output' .Output. says that outputs are \[5\], and they are \(2,\)",
    ),
    "sum of two sizes": (
        graph([*CHAIN, ("fc", "output")]),
        "node 'output' .Output. is given the sum of what has different shapes",
    ),
    "neurons of another number": (
        graph(lif=lif((5,))),
        r"node 'lif' .LIF. must have one r, or one for each of its neurons \(4,\), got \(5,\)",
    ),
    "tau below dt": (
        graph(lif=lif(tau=1e-5)),
        "node 'lif' .LIF. must have a tau of at least dt=0.0001 seconds, got 1e-05",
    ),
    "negative tau": (graph(lif=lif(tau=-2e-4)), "node 'lif' .LIF. must have a tau of at least"),
    "threshold of 0": (graph(lif=lif(v_threshold=0.0)), "node 'lif' .LIF. must have a v_threshold above 0"),
    "reset above the threshold": (
        graph(lif=lif(v_reset=1.5)),
        "node 'lif' .LIF. must have a v_threshold above 0 and above v_reset",
    ),
    "leak elsewhere": (graph(lif=lif(v_leak=0.5)), "node 'lif' .LIF. must leak towards what it is reset to"),
    "leak of LI": (graph(lif=nir.LI(2e-4 * ONES, ONES, ONES)), "node 'lif' .LI. must have a v_leak of 0"),
    "map for a dense layer": (
        of_map(nir.Linear(np.ones((4, 3)))),
        r"node 'node' .Linear. must have weights .* \(1, 6, 6\)",
    ),
    "vector for a convolution": (
        graph(fc=conv()),
        r"node 'fc' .Conv2d. must be given a map \[C, H, W\], got \(3,\)",
    ),
    "channels of a convolution": (
        of_map(conv(weight=np.ones((2, 2, 3, 3)))),
        "node 'node' .Conv2d. must have weights",
    ),
    "stride of 0": (
        of_map(conv(stride=0)),
        "node 'node' .Conv2d. must have whole numbers from 1 on as its stride",
    ),
    "half a stride": (of_map(conv(stride=two(1.5))), "node 'node' .Conv2d. must have whole numbers"),
    "padding below 0": (
        of_map(conv(padding=two(-1))),
        "node 'node' .Conv2d. must have whole numbers from 0 on as its padding",
    ),
    "padding unknown": (
        of_map(conv(padding="reflect")),
        "node 'node' .Conv2d. must have 'same', 'valid' or numbers as its padding",
    ),
    "window too large": (
        of_map(conv(padding=0, dilation=9)),
        r"node 'node' .Conv2d. has windows of \(19, 19\), larger than its map",
    ),
    "pool too large": (
        of_map(nir.AvgPool2d(two(7), two(7), two(0))),
        "node 'node' .AvgPool2d. has windows of",
    ),
    "padding without end": (
        of_map(nir.SumPool2d(two(2), two(1), two(10**6))),
        "node 'node' .SumPool2d. must have at most",
    ),
    "flatten of a part": (
        of_map(nir.Flatten({"input": None}, 1, -1)),
        "node 'node' .Flatten. must flatten all of",
    ),
    "flatten of no axis": (
        of_map(nir.Flatten({"input": None}, 0, 7)),
        "node 'node' .Flatten. must have an axis as its end_dim",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_in_a_graph_is_an_error_that_names_the_node(name):
    wrong, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        model_from_nir(wrong)


def test_the_graphs_that_they_were_made_of_are_whole():
    model_from_nir(graph())
    model_from_nir(graph([*CHAIN, *BACK], w=nir.Linear(np.ones((4, 4)))))
    model_from_nir(of_map(conv(), [2, 6, 6]))


GARBAGE = [
    *(None, "x", b"x", [], {}, object(), 1j, True, math.nan, -1, 0, 2**63, 1e300, np.float16(3)),
    *(np.zeros(0), np.array("x"), np.ones((2, 3, 4)), np.full(4, -math.inf), np.array([2**62, 2**62])),
    np.array([[1], [2]], object),
]


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_garbage_in_any_field_is_an_error_that_names_the_node():
    """Or there is nothing wrong with it: a network comes out."""
    refused = 0
    pool = nir.AvgPool2d(two(2), two(2), two(0))
    wholes = [
        graph([*CHAIN, *BACK], w=nir.Linear(np.ones((4, 4)))),
        of_map(conv(), [2, 6, 6]),
        of_map(pool, [1, 3, 3]),
    ]
    for whole in wholes:
        for name, node in whole.nodes.items():
            for field in FIELDS[type(node).__name__] or ["input_type"]:
                kept = getattr(node, field)
                for value in GARBAGE:
                    setattr(node, field, {"input": value} if field == "input_type" else value)
                    try:
                        model_from_nir(whole)
                    except ValueError as error:
                        refused += 1
                        assert re.search("node '|the graph ", str(error)), (name, field, value, error)
                setattr(node, field, kept)
    assert refused > 400


@pytest.mark.parametrize("dt", [0, -1e-4, math.inf])
def test_a_time_step_that_is_none_is_an_error(dt):
    with pytest.raises(ValueError, match="dt must be a positive number of seconds"):
        from_nir(graph(), dt=dt)


def test_what_is_no_graph_is_an_error():
    with pytest.raises(TypeError, match=r"expected a nir\.NIRGraph or the path of a \.nir file, got Affine"):
        from_nir(nodes()["fc"])
