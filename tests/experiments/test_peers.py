"""What the benchmark compares is the same computation, of live networks, and is measured alike."""

import importlib
from functools import partial
from importlib.util import find_spec

import jax
import numpy as np
import pytest
from peers import protocol, with_plain_flax, with_sltt_jax, with_sltt_jax_devices
from peers.workloads import LEARNING_RATE, OWN_RULES, WORKLOADS, flattened, own_rules

from sltt_jax import functional, models, parse_rule, rules, run
from sltt_jax.layers import FIRING_RATE

pytestmark = pytest.mark.usefixtures("quick_compile")

SMALL = {
    "linear512_T500": {"T": 4, "batch": 3, "chunks": (3,)},
    "mlp_T10": {"T": 3, "batch": 4, "chunks": (2,)},
    "conv_T10": {"T": 3, "batch": 4, "chunks": (2,)},
    "resnet18_T4": {"T": 2, "batch": 2, "chunks": (2,)},
    "vgg11_T10": {"T": 2, "batch": 2, "chunks": (2,)},
    # As its layers are, with fewer of them.
    "dvs_vgg_batch16_T10": {
        "layers": (
            *(("conv", 4, 1, True), ("norm",), ("lif",)) * 2,
            *(("pool", 2), ("flatten",), ("dense", 10)),
        ),
        "shape": (8, 8, 2), "T": 3, "batch": 2, "chunks": (2,),
    },
}  # fmt: skip
FEW = "bptt", "sltt(chunk)"
ALL = tuple(rule for rule in OWN_RULES if rule != "sltt_k(2)")

# The large networks are compiled under one rule of ours, and under one by hand.
KINDS = {"linear512_T500": ALL, "mlp_T10": ALL, "resnet18_T4": FEW[1:], "vgg11_T10": FEW[1:]}


# Of the channels of the paper's networks: what is compared is how layers are joined, not how wide they are.
WIDTH = 1 / 8


def small(name):
    workload = WORKLOADS[name]._replace(**SMALL[name])
    if name in ("resnet18_T4", "vgg11_T10"):
        workload = workload._replace(layers=tuple(map(narrow, workload.layers)))
    return workload


def narrow(layer):
    kind, *args = layer
    return (kind, round(args[0] * WIDTH), *args[1:]) if kind in ("conv", "block") else layer


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
    found = parse_rule(rule)
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


@pytest.mark.parametrize(
    ("name", "kinds"),
    [(name, KINDS.get(name, FEW)) for name in SMALL],
)
@pytest.mark.slow
def test_all_compute_the_same(name, kinds, x64, monkeypatch):
    """Losses and gradients, of this library under its rules and of those that are written by hand."""
    for network in ("ResNet18", "VGG11"):
        monkeypatch.setattr(with_sltt_jax, network, partial(getattr(models, network), width=WIDTH))
    workload = small(name)
    sltt, bptt = by_hand_in_torch(workload, "sltt"), by_hand_in_torch(workload, "bptt")
    assert sltt[0] == pytest.approx(bptt[0], rel=1e-12)
    assert not same(sltt[1], bptt[1], 1e-2)  # they differ where neurons have a past
    results = {rule: own(workload, rule) for rule in own_rules(workload, kinds)}
    by_hand = ("sltt",) if kinds != ALL else ("bptt", "sltt")
    results |= {f"Flax, {rule}": by_hand_in_flax(workload, rule) for rule in by_hand}
    for rule, (loss, grads) in results.items():
        assert loss == pytest.approx(sltt[0], rel=1e-6), rule
        assert all(np.linalg.norm(g) > 0 for g in grads), rule
        assert same(grads, sltt[1]) == ("sltt" in rule and rule != "sltt_k(1)"), rule
        assert same(grads, bptt[1]) == ("bptt" in rule), rule


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp_T10", "conv_T10"])
def test_devices_compute_the_same(name):
    """Losses of three updates on one device and on all, statistics of the batch included."""
    workload = small(name)
    losses = []
    for module in (with_sltt_jax, with_sltt_jax_devices):
        program = module.program(workload, "sltt(2)", "float32")
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
        assert str(parse_rule(rule)) == rule


@pytest.mark.parametrize("name", ["mlp_T10", pytest.param("conv_T10", marks=pytest.mark.slow)])
def test_neurons_fire(name):
    """Else the numbers would be of dead networks: in the last layers too, with and without normalisation."""
    workload = small(name)
    _, state, batch = with_sltt_jax.make_update(workload, rules.sltt(), "float32")
    model = with_sltt_jax.model(workload, None)
    apply = functional.applier(model, record=(FIRING_RATE,))
    start = functional.at_rest(model, state.variables, batch["x"][0])
    (_, recorded), _ = jax.jit(partial(run, apply))(state.params, start, batch["x"])
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
