import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax.rules import bptt, sltt, sltt_k, tbptt
from sltt_jax.streaming import stream
from tests.common.nets import KEY, T, assert_close, gradient, net

pytestmark = pytest.mark.usefixtures("quick_compile")


def cut(inputs, size):
    return (np.asarray(inputs[t : t + size]) for t in range(0, len(inputs), size))


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        *(("two_matrices", rule) for rule in (sltt(), sltt(4), tbptt(4), sltt_k(3))),
        pytest.param("mlp", sltt(4), marks=pytest.mark.slow),
        pytest.param("convnet", sltt_k(3), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_same_result_as_with_all_steps_at_once(x64, name, rule):
    n = net(name)
    f = stream(rule, n.apply, n.step_loss)

    def run():
        return f(n.params, n.state, cut(n.inputs, rule.block_steps), n.target, jax.random.key(KEY), T=T)

    got = run()
    assert_close(got, gradient(name, rule), 1e-12)
    assert_close(run(), got, 0)  # of the same compiled function and state


def bytes_on_device():
    return sum(x.nbytes for x in jax.live_arrays())


@pytest.mark.parametrize(
    "rule", [sltt(chunk=2), pytest.param(sltt_k(1, draw="first"), marks=pytest.mark.slow)], ids=str
)
def test_device_memory_does_not_grow_with_the_stream(x64, rule):
    n, size = net("two_matrices"), rule.block_steps

    def apply(params, state, xs, *, temporal_gradient):
        """On inputs that are large beside the loss of a step."""
        return n.apply(params, state, xs[..., :5], temporal_gradient=temporal_gradient)

    f = stream(rule, apply, n.step_loss)
    block = np.random.default_rng(0).normal(size=(size, 4, 200))
    peaks = []
    for steps in (8, 64):
        gc.collect()  # what earlier tests left must not go in between
        seen = []

        def blocks():
            for _ in range(steps // size):  # noqa: B023
                seen.append(bytes_on_device())  # noqa: B023
                yield block.copy()

        f(n.params, n.state, blocks(), n.target, T=steps)
        assert len(seen) == steps // size
        peaks.append(max(seen))
    # Nothing is added but the loss of a step here and there, not yet on the host.
    assert abs(peaks[1] - peaks[0]) < block.nbytes / 8
    # The control: the arrays that are counted do grow when a program is given all steps.
    before = bytes_on_device()
    held = jnp.asarray(np.concatenate([block] * (64 // size)))
    assert bytes_on_device() - before == held.nbytes >= 64 // size * block.nbytes


@pytest.mark.parametrize(
    ("rule", "lengths", "T", "message"),
    [
        (bptt(), [4], 4, "bptt needs all time steps"),
        (sltt(2), [3, 1], 4, "block at step 0 of T=4 must hold 2 steps, got 3"),
        (sltt(2), [2, 1, 2], 5, "block at step 2 of T=5 must hold 2 steps, got 1"),
        (sltt(2), [2, 2, 2], 4, "block at step 4 of T=4 must hold 0 steps, got 2"),
        (sltt(2), [2], 4, "ended after 2 of T=4"),
        (sltt(2), [0], 4, "at least one time step, got T=0"),
        (sltt(1), [], 0, "T must be >= 1, got 0"),
        (sltt_k(5, draw="last"), [1, 1, 1, 1], 4, "k=5 is more than the T=4"),
    ],
)
def test_impossible_streams(x64, rule, lengths, T, message):
    n = net("two_matrices")
    blocks = [np.zeros((length, 4, 5)) for length in lengths]
    with pytest.raises(ValueError, match=message):
        stream(rule, n.apply, n.step_loss)(n.params, n.state, blocks, n.target, T=T)
