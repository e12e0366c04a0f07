"""Imported graphs: ours come back as they were, others are what NIR's equations say, and rules train them."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import bptt, functional, losses, run, sltt
from sltt_jax.analysis import check_apply
from tests.common.nir_graphs import simulate
from tests.common.nir_networks import NETWORKS, VECTORS, channels_first, drawn

nir = pytest.importorskip("nir", reason="the extra nir is not installed")
from sltt_jax.nir import from_nir, model_from_nir, to_nir  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_compile", "x64")


def drawing(seed=5):
    """Draws arrays, the same ones again from the same seed."""
    rng = np.random.default_rng(seed)
    return lambda *shape, low=-0.8: rng.uniform(low, 1, shape)


def neurons(draw, kind, shape, **fields):
    """Neurons each of which is another one."""
    names = (
        ("r", "v_threshold", "v_reset")
        if kind is nir.IF
        else ("tau", "r", "v_leak", "v_threshold", "v_reset")
    )
    if kind is nir.CubaLIF:
        names = ("tau_syn", "tau_mem", *names[1:], "w_in")
    values = {name: draw(*shape, low=0.4) for name in names}
    values["v_threshold"] = 0.1 + draw(*shape, low=0) / 2
    if kind is nir.CubaLIF:
        values["w_in"] = 4 * values["w_in"]
    reset = draw(*shape) / 12
    values |= {name: reset for name in ("v_leak", "v_reset") if name in names}
    values |= {name: 1e-4 * (1 + 3 * draw(*shape, low=0)) for name in names if name.startswith("tau")}
    if kind is nir.IF:
        values["r"] = values["r"] * 3e4
    return kind(**values | fields)


def of_maps():
    """Maps, whose branches are added up, flattened channels first for neurons each of its own."""
    draw = drawing()
    pair = lambda n: np.array([n, n])
    conv = lambda n, m, k, padding: nir.Conv2d(
        None, draw(n, m, k, k, low=-0.5) / k, (1, 1), padding, (1, 1), 1, draw(n)
    )
    nodes = {
        "input": nir.Input({"input": np.array([2, 6, 4])}),
        "conv": conv(3, 2, 3, "same"),
        "lif": neurons(draw, nir.LIF, (3, 6, 4)),
        "side": conv(3, 2, 3, (1, 1)),
        "if": neurons(draw, nir.IF, (3, 6, 4)),
        "pool": nir.AvgPool2d(pair(3), pair(2), pair(1)),
        "sums": nir.SumPool2d(pair(2), pair(1), pair(0)),
        "flatten": nir.Flatten({"input": None}, 0, -1),
        "each": neurons(draw, nir.LIF, (6,), r=np.ones(6)),
        "output": nir.Output({"output": np.array([6])}),
    }
    edges = [
        ("input", "conv"),
        ("conv", "lif"),
        ("input", "side"),
        ("side", "if"),
        ("lif", "pool"),
        ("if", "pool"),
    ]
    edges += [("pool", "sums"), ("sums", "flatten"), ("flatten", "each"), ("each", "output")]
    return nir.NIRGraph(nodes, edges, type_check=False), (2, 6, 4, 2)


def of_cells():
    """Recurrent cells with a bias, as snnTorch has them, and currents; names that ours could clash with."""
    draw = drawing()
    nodes = {
        "input": nir.Input({"input": np.array([7])}),
        "shape": nir.Affine(draw(5, 7), draw(5)),
        "steps.lif": neurons(draw, nir.LIF, (5,)),
        "steps.w_rec": nir.Affine(draw(5, 5), draw(5)),
        "parent": nir.Linear(2 * draw(6, 5, low=-0.5)),
        "name": neurons(draw, nir.CubaLIF, (6,)),
        "w": nir.Linear(draw(6, 6)),
        "out": nir.Affine(draw(3, 6), draw(3)),
        "li": nir.LI(1e-4 * (1 + draw(3, low=0)), draw(3), np.zeros(3)),
        "output": nir.Output({"output": np.array([3])}),
    }
    way = ["input", "shape", "steps.lif", "parent", "name", "out", "li", "output"]
    edges = list(itertools.pairwise(way))
    edges += [("steps.lif", "steps.w_rec"), ("steps.w_rec", "steps.lif"), ("name", "w"), ("w", "name")]
    return nir.NIRGraph(nodes, edges), VECTORS


@pytest.mark.parametrize("made", [of_maps, of_cells])
def test_graphs_of_others_are_what_the_equations_say(made):
    graph, shape = made()
    xs = drawing(6)(12, *shape)
    apply, params, state = from_nir(graph, batch_size=2)
    out, _ = jax.jit(partial(run, apply))(params, state, jnp.asarray(xs))
    theirs = simulate(graph, channels_first(xs))
    np.testing.assert_allclose(out, theirs["output"], rtol=1e-9, atol=1e-11)
    for name, values in theirs.items():
        spikes = name in ("lif", "if", "each", "steps.lif", "name")
        assert 0.03 < values.mean() < 0.9 if spikes else values.std() > 0.05, (name, values.mean())


@pytest.mark.parametrize("name", NETWORKS)
def test_our_own_networks_come_back_as_they_were(name, tmp_path):
    model, shape = NETWORKS[name]
    params, state, xs = drawn(model, shape)
    graph = to_nir(model, params, state, xs[0], fold_tau=False)
    nir.write(tmp_path / "net.nir", graph)
    apply, weights, rest = from_nir(tmp_path / "net.nir", batch_size=2)
    out, _ = jax.jit(partial(run, functional.applier(model, train=False)))(params, state, xs)
    again, _ = jax.jit(partial(run, apply))(weights, rest, xs)
    assert (again == out).all() and np.abs(out).max() > 0.1
    for node, arrays in weights.items():
        layer = params[node.removesuffix(".w_rec")]
        if node == "layers_2" and name == "maps":
            continue  # batch normalisation was folded into it
        assert all((a == layer[leaf]).all() for leaf, a in arrays.items()), node


def test_what_was_imported_can_be_exported():
    model, shape = NETWORKS["maps"]
    params, state, xs = drawn(model, shape)
    graph = to_nir(model, params, state, xs[0])
    network, weights = model_from_nir(graph)
    again = to_nir(network, weights, functional.at_rest(network, {}, xs[0]), xs[0])
    first, second = (simulate(g, channels_first(xs))["output"] for g in (graph, again))
    assert (first == second).all() and first.std() > 0.1


def of_neurons():
    """Two layers of neurons, each of them another one."""
    draw = drawing()
    nodes = [
        nir.Affine(draw(6, 7), draw(6)),
        neurons(draw, nir.LIF, (6,)),
        nir.Linear(draw(5, 6)),
        neurons(draw, nir.IF, (5,)),
    ]
    return nir.NIRGraph.from_list(*nodes, nir.Linear(draw(3, 5))), VECTORS


@pytest.mark.slow
def test_rules_train_an_imported_graph():
    graph, shape = of_neurons()
    xs, labels = jnp.asarray(drawing(6)(8, *shape)), jnp.array([0, 2])
    apply, params, state = from_nir(graph, batch_size=2)
    spatial, exact = (
        jax.jit(rule.value_and_grad(apply, losses.cross_entropy))(params, state, xs, labels)[1]
        for rule in (sltt(), bptt())
    )
    assert set(params) == {"affine", "linear", "linear_1"}
    for a, b in zip(jax.tree.leaves(spatial["affine"]), jax.tree.leaves(exact["affine"]), strict=True):
        assert np.linalg.norm(a - b) > 0.01 * np.linalg.norm(b) > 0


@pytest.mark.slow
@pytest.mark.parametrize("made", [of_neurons, of_cells])
def test_an_imported_graph_keeps_what_rules_suppose(made):
    graph, shape = made()
    apply, params, state = from_nir(graph, batch_size=2)
    check_apply(apply, params, state, jnp.asarray(drawing(6)(8, *shape)))


def test_the_input_must_be_that_of_the_graph():
    apply, params, state = from_nir(of_cells()[0])
    with pytest.raises(ValueError, match=r"the graph takes inputs \[T, B, 7\], got \(3, 1, 6\)"):
        apply(params, state, jnp.zeros((3, 1, 6)), temporal_gradient=True)
