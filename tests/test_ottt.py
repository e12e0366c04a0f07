"""OTTT against loops in NumPy that are written from its equations and share no line with the library."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import (
    Neuron,
    PerStep,
    functional,
    lif,
    lif_step,
    ottt,
    over_time,
    recurrent,
    sltt,
    stream,
    synapse,
)
from sltt_jax.layers import LIF, Conv, Dense, NormedConv, ScaledWSConv, StepBatchNorm
from sltt_jax.traces import Traces
from tests.common import nets
from tests.common.nets import assert_close, difference, squared_error

pytestmark = pytest.mark.usefixtures("x64", "quick_compile")

T, BATCH, DECAY, TAU, THRESHOLD = 5, 3, 0.6, 2.0, 0.5
NEURON = Neuron(tau=TAU, v_threshold=THRESHOLD)
CHUNKS = 1, 2, 5
rng = np.random.default_rng(0)


class Layer:
    """LIF neurons in NumPy: membranes, spikes, and the surrogate derivative of the step."""

    def __init__(self):
        self.v = 0.0

    def __call__(self, current):
        u = (1 - 1 / TAU) * self.v + current
        self.slope = np.maximum(0, 1 - np.abs(u - THRESHOLD))
        self.s = (u >= THRESHOLD) * 1.0
        self.v = u - THRESHOLD * self.s
        return self.s


def mean_error(s, target):
    """The gradient of the squared error of a step, averaged over the T steps."""
    return 2 * (s - target) / s.size / T


DENSE = {
    "w1": rng.normal(size=(4, 6)),
    "r": 0.4 * rng.normal(size=(6, 6)),
    "w2": 0.7 * rng.normal(size=(6, 3)),
}
XS, TARGET = rng.normal(size=(T, BATCH, 4)), rng.uniform(size=(BATCH, 3))


def by_hand(lateral):
    """Two layers, the first with lateral weights: spatial error signals times traces."""
    w1, r, w2 = DENSE["w1"], DENSE["r"] * lateral, DENSE["w2"]
    grads = {name: np.zeros_like(w) for name, w in DENSE.items()}
    first, second = Layer(), Layer()
    s = np.zeros((BATCH, 6))
    ax, ar, a1 = np.zeros((BATCH, 4)), np.zeros((BATCH, 6)), np.zeros((BATCH, 6))
    spikes = []
    for x in XS:
        ax, ar = DECAY * ax + x, DECAY * ar + s
        s = first(x @ w1 + s @ r)
        a1 = DECAY * a1 + s
        e2 = mean_error(second(s @ w2), TARGET) * second.slope
        e1 = (e2 @ w2.T) * first.slope
        for name, a, e in (("w1", ax, e1), ("r", ar, e1), ("w2", a1, e2)):
            grads[name] += a.T @ e
        spikes.append(s)
    assert 0.05 < np.mean(spikes) < 0.7  # live
    if not lateral:
        del grads["r"]
    return grads


def network(lateral):
    cell = over_time(recurrent(lif_step)) if lateral else lif

    def apply(p, state, xs, *, temporal_gradient):
        product = functools.partial(synapse, lambda xs, w: xs @ w, temporal_gradient=temporal_gradient)
        weights = (p["r"],) if lateral else ()
        v1, xs = cell(state[0], product(xs, p["w1"]), *weights, NEURON, temporal_gradient=temporal_gradient)
        v2, xs = lif(state[1], product(xs, p["w2"]), NEURON, temporal_gradient=temporal_gradient)
        return xs, [v1, v2]

    rest = jnp.zeros((BATCH, 6))
    state = [(rest, rest) if lateral else rest, jnp.zeros((BATCH, 3))]
    params = {name: jnp.asarray(w) for name, w in DENSE.items() if lateral or name != "r"}
    return apply, params, state


def gradient(rule, lateral):
    apply, params, state = network(lateral)
    return jax.jit(rule.value_and_grad(apply, squared_error))(params, state, jnp.asarray(XS), TARGET)


@pytest.mark.parametrize("lateral", [False, True], ids=["plain", "recurrent"])
def test_it_is_the_loop_written_out(lateral):
    expected = by_hand(lateral)
    (_, aux), without = gradient(sltt(), lateral)
    for chunk in CHUNKS:
        (_, traced), grads = gradient(ottt(DECAY, chunk), lateral)
        assert_close(grads, expected)
        chex.assert_trees_all_equal((traced.outputs, traced.losses), (aux.outputs, aux.losses))
        chex.assert_trees_all_equal_shapes(traced.state, aux.state)
    # The control: the rule that must differ does.
    assert min(difference(without, expected).values()) > 0.05


@pytest.mark.parametrize("lateral", [False, True], ids=["plain", "recurrent"])
def test_without_a_trace_it_is_sltt(lateral):
    assert_close(gradient(ottt(0.0, 2), lateral)[1], gradient(sltt(), lateral)[1])


class Convolutional(nn.Module):
    """A convolution, one with standardised weights and a dense readout."""

    @nn.compact
    def __call__(self, xs, *, train, temporal_gradient):
        xs = LIF(NEURON)(Conv(3, (3, 3), name="conv")(xs), temporal_gradient=temporal_gradient)
        xs = ScaledWSConv(2, (3, 3), padding=1, name="standardised")(xs)
        xs = LIF(NEURON)(xs, temporal_gradient=temporal_gradient)
        return Dense(2, name="readout")(xs.reshape(*xs.shape[:2], -1))


def windows(x):
    """The 3 x 3 window of every pixel, `[B, H, W, C]` to `[B, H, W, 9 C]`, zeros around."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = [padded[:, i : i + x.shape[1], j : j + x.shape[2]] for i in range(3) for j in range(3)]
    return np.concatenate(parts, -1)


def from_windows(parts, shape):
    """The transpose of `windows`: sums what the nine windows that a pixel is in say of it."""
    B, H, W, C = shape
    padded = np.zeros((B, H + 2, W + 2, C))
    for k in range(9):
        padded[:, k // 3 : k // 3 + H, k % 3 : k % 3 + W] += parts[..., C * k : C * (k + 1)]
    return padded[:, 1:-1, 1:-1]


def conv_by_hand(params, xs, target):
    """Kernels are `[3, 3, in, out]`; the gradient goes back through them by the transposed matrix."""

    def standardised(kernel, gain):
        n = kernel[..., 0].size
        mean, var = kernel.mean((0, 1, 2)), kernel.var((0, 1, 2), ddof=1)
        return (kernel - mean) * gain / np.sqrt(var * n + 1e-4)

    conv, ws, readout = (jax.tree.map(np.asarray, params[n]) for n in ("conv", "standardised", "readout"))
    kernel2 = standardised(ws["kernel"], ws["gain"])
    k1, k2 = conv["kernel"].reshape(-1, 3), kernel2.reshape(-1, 2)
    first, second = Layer(), Layer()
    shape = xs.shape[2:4]
    ax, a1, a2 = np.zeros(xs.shape[1:]), np.zeros((BATCH, *shape, 3)), np.zeros((BATCH, *shape, 2))
    grads = jax.tree.map(lambda p: np.zeros(p.shape), params)
    by_kernel2 = np.zeros(kernel2.shape)
    for x in xs:
        ax = DECAY * ax + x
        s1 = first(windows(x) @ k1 + conv["bias"])
        a1 = DECAY * a1 + s1
        s2 = second(windows(s1) @ k2 + ws["bias"])
        a2 = DECAY * a2 + s2
        e3 = mean_error(s2.reshape(BATCH, -1) @ readout["kernel"] + readout["bias"], target)
        e2 = (e3 @ readout["kernel"].T).reshape(s2.shape) * second.slope
        e1 = from_windows(e2 @ k2.T, s1.shape) * first.slope
        grads["readout"]["kernel"] += a2.reshape(BATCH, -1).T @ e3
        grads["readout"]["bias"] += e3.sum(0)
        by_kernel2 += np.einsum("bhwi,bhwo->io", windows(a1), e2).reshape(by_kernel2.shape)
        grads["standardised"]["bias"] += e2.sum((0, 1, 2))
        grads["conv"]["kernel"] += np.einsum("bhwi,bhwo->io", windows(ax), e1).reshape(conv["kernel"].shape)
        grads["conv"]["bias"] += e1.sum((0, 1, 2))
        assert 0.05 < s1.mean() < 0.9 and s2.mean() > 0.02
    # From the standardised kernel to the kernel and its gain.
    n, kernel, gain = ws["kernel"][..., 0].size, ws["kernel"], ws["gain"]
    root = np.sqrt(kernel.var((0, 1, 2), ddof=1) * n + 1e-4)
    centred = kernel - kernel.mean((0, 1, 2))
    grads["standardised"]["gain"] = (by_kernel2 * centred / root).sum((0, 1, 2))
    g = by_kernel2 * gain
    along = (g * centred).sum((0, 1, 2))
    g = g / root - centred * along * n / (n - 1) / root**3
    grads["standardised"]["kernel"] = g - g.mean((0, 1, 2))
    return grads


@pytest.mark.slow
def test_convolutions_of_a_linen_network():
    model = Convolutional()
    xs = jnp.asarray(np.random.default_rng(3).normal(size=(T, BATCH, 4, 4, 2)))
    target = jnp.asarray(np.random.default_rng(4).normal(size=(BATCH, 2)))
    params, state = functional.init(model, jax.random.key(0, impl="rbg"), xs[0])
    params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
    expected = conv_by_hand(params, np.asarray(xs), np.asarray(target))
    for rule in (ottt(DECAY), ottt(DECAY, 3)):
        f = jax.jit(rule.value_and_grad(functional.applier(model), squared_error))
        assert_close(f(params, state, xs, target)[1], expected)
    _, spatial = jax.jit(sltt().value_and_grad(functional.applier(model), squared_error))(
        params, state, xs, target
    )
    assert difference(spatial, expected)["['conv']['kernel']"] > 0.05


class Normed(nn.Module):
    """A convolution whose bias goes beside it to a norm, as in the paper's networks."""

    @nn.compact
    def __call__(self, xs, *, train, temporal_gradient):
        xs, bias = NormedConv(3, (3, 3), padding=1)(xs)
        xs = LIF(NEURON)(StepBatchNorm()(xs, bias, train=train), temporal_gradient=temporal_gradient)
        return Dense(2)(xs.reshape(*xs.shape[:2], -1))


@pytest.mark.slow
def test_a_convolution_before_a_norm():
    """Without a trace it is SLTT, with one its kernel has another gradient and the norm has the same."""
    model, xs = Normed(), np.random.default_rng(3).normal(size=(T, BATCH, 4, 4, 2))
    params, state = functional.init(model, jax.random.key(0, impl="rbg"), xs[0])
    params = jax.tree.map(lambda p: p.astype(jnp.float64), params)
    gradient_of = lambda rule: jax.jit(rule.value_and_grad(functional.applier(model), squared_error))(
        params, state, xs, np.ones((BATCH, 2))
    )[1]
    spatial, none, traced = (gradient_of(rule) for rule in (sltt(), ottt(0.0, 2), ottt(DECAY, 2)))
    for name in ("NormedConv_0", "Dense_0"):
        assert_close(none[name]["kernel"], spatial[name]["kernel"])
        assert difference(traced[name]["kernel"], spatial[name]["kernel"])[""] > 0.05
    assert_close(traced["StepBatchNorm_0"], spatial["StepBatchNorm_0"])


def test_a_stream_and_targets_of_each_step():
    apply, params, state = network(True)
    targets = np.random.default_rng(5).uniform(size=(T, BATCH, 3))
    rule = ottt(DECAY, 2)
    whole = jax.jit(rule.value_and_grad(apply, squared_error))(
        params, state, jnp.asarray(XS), PerStep(targets)
    )
    parts = stream(rule, apply, squared_error)
    found = parts(params, state, (XS[i : i + 2] for i in range(0, T, 2)), PerStep(targets), T=T)
    assert_close(found, whole, 1e-13)


def test_networks_that_keep_no_traces_are_refused():
    n = nets.net("two_matrices")
    with pytest.raises(
        ValueError, match=r"ottt needs a network whose layers keep traces .* sltt_jax\.synapse"
    ):
        ottt(0.5).value_and_grad(n.apply, n.step_loss)(n.params, n.state, n.inputs, n.target)

    class Embedding(nn.Module):
        @nn.compact
        def __call__(self, xs, *, train, temporal_gradient):
            return Dense(2)(nn.DenseGeneral(3)(xs))

    model = Embedding()
    params, state = functional.init(model, jax.random.key(0), jnp.ones((BATCH, 4)))
    with pytest.raises(ValueError, match="ottt has no traces for the weights 'kernel' of a DenseGeneral"):
        ottt(0.5).value_and_grad(functional.applier(model), squared_error)(
            params, state, XS, jnp.ones((BATCH, 2))
        )
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"decay must be in 0\.\.1, got"):
            ottt(wrong)


def test_weights_without_a_trace_are_named():
    apply, params, state = network(True)

    def readout(p, state, xs, *, temporal_gradient, kept=False):
        xs, state = apply(p, state, xs, temporal_gradient=temporal_gradient)
        product = lambda xs, w: jax.jit(jnp.matmul)(xs, w)
        if kept:
            xs = synapse(product, xs, p["out"], temporal_gradient=temporal_gradient)
        else:
            xs = product(xs, p["out"])
        return xs * p["gain"], state

    params |= {"out": jnp.ones((3, 2)), "gain": jnp.float64(2)}
    start = lambda apply: ottt(DECAY).start(apply, params, state, jnp.asarray(XS))
    with pytest.raises(
        ValueError, match=r"no trace for what enters the weights \['out'\], of shape \(3, 2\)"
    ):
        start(readout)
    # The control: with one it is taken, and so are lateral weights and a gain.
    _, traces = start(functools.partial(readout, kept=True)).state
    assert len(traces) == 4


def test_traces_of_a_block_go_on_from_those_before():
    xs = jnp.arange(6.0).reshape(3, 2)
    one, two = Traces(0.5), Traces(0.5)
    whole = one.through(xs)
    np.testing.assert_allclose(whole, [[0, 1], [2, 3.5], [5, 6.75]])
    first = two.through(xs[:2])
    rest = Traces(0.5, two.after).through(xs[2:])
    np.testing.assert_allclose(jnp.concatenate([first, rest]), whole)
    assert one.through(jnp.ones((1, 2), jnp.bfloat16)).dtype == jnp.float32
