"""The benchmark: that what it compares is the same computation, and that the script does what it says."""

import importlib
import json
import re
import stat
import sys
from importlib.util import find_spec

import benchmark
import jax
import numpy as np
import pytest
from benchmark_tables import collect, report
from peers import protocol, with_plain_flax, with_sltt_jax, with_sltt_jax_devices
from peers.workloads import LEARNING_RATE, OWN_RULES, WORKLOADS, flattened, own_rules
from plots_benchmark import plot_benchmark, plot_chunks
from scripts import call

from sltt_jax import functional, rules, run
from sltt_jax.layers import FIRING_RATE

SMALL = {
    "linear512_T500": {"T": 4, "batch": 3, "chunks": (3,)},
    "mlp_T10": {"T": 3, "batch": 4, "chunks": (2,)},
    "conv_T10": {"T": 3, "batch": 4, "chunks": (2,)},
    "resnet18_T4": {"T": 2, "batch": 2, "chunks": (2,)},
    "vgg11_T10": {"T": 2, "batch": 2, "chunks": (2,)},
}
DEEP = "res", "vgg"
every_network = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name[:3] in DEEP else []) for name in SMALL]
)


def small(name):
    return WORKLOADS[name]._replace(**SMALL[name])


def wide(tree):
    """In double precision."""
    widen = lambda a: np.asarray(a, np.float64) if np.issubdtype(a.dtype, np.floating) else a
    return jax.tree.map(widen, tree)


def as_in_torch(workload, params):
    """The kernels in PyTorch's layout."""
    found = []
    for path, p in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key == "kernel":
            *window, n, features = p.shape
            w, maps = np.asarray(p), flattened(workload)
            if not window and maps and n == np.prod(maps):
                w = w.reshape(*maps, features).transpose(3, 2, 0, 1).reshape(features, n)
            else:
                w = w.transpose(-1, -2, *range(len(window)))
            found.append(w)
    return found


def gradients(before, after):
    """Of the first update: the momentum starts at zero."""
    return [(b - a) / LEARNING_RATE for b, a in zip(before, after, strict=True)]


def own(workload, rule):
    found = with_sltt_jax.make_rule(rule, workload.T)
    update, state, batch = with_sltt_jax.make_update(workload, found, "float32")
    parts = "params", "variables", "opt_state"
    state = state._replace(**{part: wide(getattr(state, part)) for part in parts})
    after, metrics = jax.jit(update)(state, wide(batch))
    kernels = (as_in_torch(workload, s.params) for s in (state, after))
    return float(metrics.loss), gradients(*kernels)


def by_hand_in_flax(workload, rule):
    update, (params, stats, opt_state), xs, y = with_plain_flax.make_update(workload, rule, "float64")
    state = wide((params, stats, opt_state))
    (after, *_), loss = jax.jit(update)(state, wide(xs), y)
    return float(loss), gradients(as_in_torch(workload, state[0]), as_in_torch(workload, after))


def by_hand_in_torch(workload, rule, module="pytorch"):
    torch = pytest.importorskip("torch", reason="PyTorch is an optional development dependency")
    from peers import torch_networks

    torch.set_num_threads(1)
    peer = importlib.import_module(f"peers.with_{module}")
    net, reset = peer.network(workload, rule)
    net = net.double()
    xs, y = torch_networks.tensors(workload)
    kernels = lambda: [p.detach().numpy().copy() for p in net.parameters() if p.ndim > 1]
    before = kernels()
    update = torch_networks.make_update(workload, net, reset, xs.double(), y, online=rule == "sltt")
    loss = update()
    return loss, gradients(before, kernels())


def same(a, b, bound=1e-4):
    """Whether two lists hold the same gradients, in any order."""
    left = list(b)
    for g in a:
        near = [
            i
            for i, h in enumerate(left)
            if h.shape == g.shape and np.linalg.norm(g - h) <= bound * np.linalg.norm(g)
        ]
        if len(near) != 1:
            return False
        left.pop(near[0])
    return not left


@every_network
def test_all_compute_the_same(name, x64):
    """Losses and gradients, of this library under its rules and of those that are written by hand."""
    workload = small(name)
    sltt, bptt = by_hand_in_torch(workload, "sltt"), by_hand_in_torch(workload, "bptt")
    assert sltt[0] == pytest.approx(bptt[0], rel=1e-12)
    assert not same(sltt[1], bptt[1], 1e-2)  # they differ where neurons have a past
    deep = name[:3] in DEEP
    kinds = ("bptt", "sltt(chunk)") if deep else tuple(rule for rule in OWN_RULES if rule != "sltt_k(2)")
    results = {rule: own(workload, rule) for rule in own_rules(workload, kinds)}
    by_hand = ("sltt",) if deep else ("bptt", "sltt")
    results |= {f"Flax, {rule}": by_hand_in_flax(workload, rule) for rule in by_hand}
    for rule, (loss, grads) in results.items():
        assert loss == pytest.approx(sltt[0], rel=1e-6), rule
        assert all(np.linalg.norm(g) > 0 for g in grads), rule
        assert same(grads, sltt[1]) == ("sltt" in rule and rule != "sltt_k(1)"), rule
        assert same(grads, bptt[1]) == ("bptt" in rule), rule


@pytest.mark.parametrize("name", ["mlp_T10", "conv_T10"])
def test_devices_compute_the_same(name):
    """Losses of three updates on one device and on all, statistics of the batch included."""
    workload = small(name)
    losses = []
    for module in (with_sltt_jax, with_sltt_jax_devices):
        program = module.program(workload, "sltt(chunk=2)", "float32")
        losses.append([program.update() for _ in range(3)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert abs(losses[0][2] - losses[0][0]) > 1e-2  # the updates change something


def test_devices_that_cannot_share_the_batch(monkeypatch):
    workload = small("mlp_T10")._replace(batch=6)
    with pytest.raises(protocol.CannotError, match="batch_size 6 cannot be shared by 4 devices"):
        with_sltt_jax_devices.program(workload, "sltt", "float32")
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    with pytest.raises(protocol.CannotError, match="only one device"):
        with_sltt_jax_devices.program(workload, "sltt", "float32")


@pytest.mark.parametrize("name", ["spikingjelly", "snntorch", "spyx"])
def test_libraries(name):
    """Where they are installed: finite losses, and spikingjelly's is that of its BPTT and its SLTT alike."""
    pytest.importorskip(name, reason=f"{name} is an optional peer of the benchmark")
    module = importlib.import_module(f"peers.with_{name}")
    workload = small("mlp_T10")
    kinds = ("bptt",) if name == "spyx" else ("bptt", "sltt")
    losses = {rule: module.program(workload, rule, "float32").update() for rule in kinds}
    assert all(np.isfinite(loss) and loss > 0 for loss in losses.values())
    if name == "spikingjelly":
        assert losses["bptt"] == pytest.approx(by_hand_in_flax(workload, "sltt")[0], rel=1e-4)
        assert losses["sltt"] == pytest.approx(losses["bptt"], rel=1e-5)


@pytest.mark.parametrize("name", WORKLOADS)
def test_workloads(name):
    """The network of the library and that written by hand have as many parameters; all chunks fit."""
    workload = WORKLOADS[name]
    x = jax.ShapeDtypeStruct((2, *workload.shape), np.float32)
    by_hand = jax.eval_shape(with_plain_flax.Net(workload.layers).init, jax.random.key(0), x)["params"]
    model = with_sltt_jax.model(workload, None)
    own = jax.eval_shape(lambda x: functional.init(model, jax.random.key(0), x)[0], x)
    shapes = lambda params: sorted(p.shape for p in jax.tree.leaves(params))
    assert shapes(own) == shapes(by_hand)
    assert all(1 < chunk <= workload.T for chunk in workload.chunks)
    for rule in own_rules(workload):
        assert with_sltt_jax.make_rule(rule, workload.T)


def test_neurons_fire():
    """Else the numbers would be of dead networks: in the last layers too, with and without normalisation."""
    for name in ("mlp_T10", "conv_T10"):
        workload = small(name)
        _, state, batch = with_sltt_jax.make_update(workload, rules.sltt(), "float32")
        model = with_sltt_jax.model(workload, None)
        apply = functional.applier(model, record=(FIRING_RATE,))
        start = functional.at_rest(model, state.variables, batch["x"][0])
        (_, recorded), _ = run(apply, state.params, start, batch["x"])
        rates = [float(rate.mean()) for rate in jax.tree.leaves(recorded[FIRING_RATE])]
        assert len(rates) == 3 and all(0.02 < rate < 0.6 for rate in rates), rates


def test_peak_memory():
    if not hasattr(protocol.ctypes.CDLL(None), "malloc_trim") or not find_spec("resource"):
        pytest.skip("peak memory is measured on Linux")
    size = 64 * 2**20
    grown = protocol.peak_memory(lambda: np.ones(size, np.uint8).sum())
    assert 0.9 * size < grown < 1.2 * size
    assert protocol.peak_memory(lambda: None) < 2**21


def test_measure():
    """Two updates before the clock starts, then turns; a loss that is not finite is an error."""
    order, said = [], []
    programs = {
        name: protocol.Program(lambda name=name: order.append(name) or 1.0, {"compile_seconds": 2.0})
        for name in "ab"
    }
    protocol.measure(programs, 3, 0.0, said.append)
    assert "".join(order) == "aabb" + "ab" * 3
    a, b = (row for row in said if "seconds" in row)
    assert a["rule"] == "a" and b["rule"] == "b" and a["compile_seconds"] == 2.0 and a["loss"] == 1.0
    assert len(a["seconds"]) == len(a["cpu_seconds"]) == 3
    bad = {"a": protocol.Program(lambda: float("nan"), {})}
    with pytest.raises(FloatingPointError, match="a: the loss of update 3 is nan"):
        protocol.measure(bad, 1, 0.0, said.append)


def interpreter(path, line):
    """A stand-in for Python."""
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_benchmark(monkeypatch, tmp_path, capsys):
    """One small measurement, gone on with; peers that are missing or take too long have rows that say so."""
    bare = interpreter(tmp_path / "bare", f'exec "{sys.executable}" -S "$@"')
    stuck = interpreter(tmp_path / "stuck", "exec sleep 60")
    workdir = tmp_path / "run"
    common = ("--workdir", workdir, "--workloads", "mlp_T10", "--precisions", "float32")
    quick = (*common, "--repeats", 1, "--seconds", 0)
    assert call(benchmark, monkeypatch, *quick, "--peers", "sltt_jax", "--rules", "sltt", "sltt_k(1)") == 0
    first = json.loads((workdir / "benchmark.json").read_text())
    assert first["machine"]["cores"] >= 1
    assert [row["rule"] for row in first["rows"]] == ["sltt", "sltt_k(1)"]
    for row in first["rows"]:
        assert row["seconds"] and row["compile_seconds"] > 0 and row["temp_bytes"] > 0 and row["flops"] > 0
        assert row["about"]["jax"] == jax.__version__ and 2 < row["loss"] < 3
        assert row["peak_bytes"] is None or row["peak_bytes"] > 0
    text = (workdir / "benchmark.md").read_text()
    assert "784-512-512-512-10, batch 64, T=10" in text and "SLTT-K against its bound" in text
    assert not (workdir / "benchmark.png").exists()  # there is nothing to compare with

    absent = (*quick, "--peers", "snntorch", "--rules", "sltt", "--peer-python", f"snntorch={bare}")
    assert call(benchmark, monkeypatch, *absent) == 0
    out = capsys.readouterr()
    assert "| snnTorch, sltt | not installed |" in out.out
    assert f"snntorch: not measured, {bare} has no numpy. `pip install torch snntorch`" in out.err

    slow = ("--peers", "spyx", "--rules", "bptt", "--peer-python", f"spyx={stuck}", "--limit", 1)
    assert call(benchmark, monkeypatch, *quick, *slow) == 0
    assert "| Spyx, bptt | > 1 s |" in capsys.readouterr().out
    last = json.loads((workdir / "benchmark.json").read_text())
    assert last["rows"][:2] == first["rows"]  # nothing is measured twice
    assert {row["peer"] for row in last["rows"]} == {"sltt_jax", "snntorch", "spyx"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--workloads", "mlp"), "unknown workloads ['mlp']; there are linear512_T500"),
        (("--repeats", 0), "repeats must be >= 1, got 0"),
        (("--limit", -1), "limit must be >= 0, got -1"),
        (("--peer-python", "spyx"), "peer_python takes peer=path of an interpreter, got 'spyx'"),
        (("--peer-python", "spyx=nowhere"), "peer_python takes peer=path of an interpreter"),
    ],
)
def test_bad_settings(args, message, monkeypatch, tmp_path, capsys):
    assert call(benchmark, monkeypatch, *args, "--workdir", tmp_path / "run") in (1, 2)
    err = capsys.readouterr().err
    assert message in " ".join(re.sub(r"[^\x20-\x7e]", " ", err).split())
    assert not (tmp_path / "run").exists()


def test_a_failing_process_is_an_error(monkeypatch, tmp_path, capsys):
    broken = interpreter(tmp_path / "broken", "echo no such thing >&2; exit 3")
    args = ("--workloads", "mlp_T10", "--peers", "spyx", "--peer-python", f"spyx={broken}")
    assert call(benchmark, monkeypatch, *args, "--workdir", tmp_path) == 1
    err = capsys.readouterr().err
    assert "failed with status 3" in err and "no such thing" in err


def row(peer, rule, *seconds, precision="float32", workload="mlp_T50", round=0, **more):
    figures = {"seconds": list(seconds), "cpu_seconds": list(seconds), "loss": 2.0} if seconds else {}
    return {
        "round": round, "workload": workload, "precision": precision, "peer": peer, "rule": rule,
        "about": {"jax": "1.2"}, **figures, **more,
    }  # fmt: skip


ROWS = [
    row("pytorch", "sltt", 0.1, 0.2, 0.9),
    row("pytorch", "sltt", 0.2, 0.3, round=1),
    row("pytorch", "bptt", 0.3),
    row("sltt_jax", "sltt", 0.15, temp_bytes=2**20, flops=1e9),
    row("sltt_jax", "sltt(chunk=2)", 0.12, temp_bytes=2 * 2**20, flops=1e9),
    row("sltt_jax", "sltt(chunk=5)", 0.1, temp_bytes=3 * 2**20, flops=1e9),
    row("sltt_jax", "sltt(chunk=25)", 0.13, temp_bytes=9 * 2**20, flops=1e9),
    row("sltt_jax", "sltt(chunk=10)", 0.11, temp_bytes=5 * 2**20, flops=1e9),
    row("sltt_jax", "sltt_k(1)", 0.06, temp_bytes=2**20, flops=0.36e9),
    row("sltt_jax", "sltt(chunk=5)", 0.04, precision="bfloat16", temp_bytes=2**20, flops=1e9),
    row("plain_flax", "bptt", silent=600.0),
    row("spyx", "bptt", 0.25),
    row("spyx", "sltt", cannot="BPTT only"),
]


def test_tables():
    """Ratios of medians over all rounds; the best chunk in brackets; SLTT-K over its bound."""
    assert collect(ROWS)["mlp_T50", "float32", "pytorch", "sltt"]["median"] == 0.2
    text = report({"cpu": "Abacus", "cores": 2}, ROWS, WORKLOADS)
    for line in (
        "Abacus, 2 cores. jax 1.2.",
        "| PyTorch by hand, sltt, ms | 200.0 |",
        "| sltt_jax, sltt | 0.75 |",
        "| sltt_jax, sltt, best chunk | 0.50 (5) |",
        "| sltt_jax, sltt, best chunk, bfloat16 | 0.20 (5) |",
        "| PyTorch by hand, bptt | 1.50 |",
        "| Spyx, bptt | 1.25 |",
        "| Spyx, sltt | - |",
        "| Flax + scan by hand, bptt | > 600 s |",
        "| mlp_T50 | sltt_k(1) | 0.40 | 0.36 | 1.11 |",
        "**mlp_T50**: 784-512-512-512-10, batch 64, T=50",
        "| sltt_jax, sltt(chunk=5) | float32 | 100.0 | 100.0 | 1 | 0.50 | 0.67 | 100.0 |  | 3.0 |  | 10 "
        "| 2.0000 |",
    ):
        assert line in text.splitlines() or line in text.split("\n\n"), line


def test_pictures(tmp_path):
    plot_benchmark(ROWS, WORKLOADS, tmp_path / "benchmark.png")
    plot_chunks(ROWS, WORKLOADS, tmp_path / "chunk.png")
    for name in ("benchmark.png", "chunk.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
