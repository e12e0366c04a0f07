import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.common.nets import T, assert_close, convnet, gradient, net

from sltt_jax.rules import bptt, sltt, sltt_k, tbptt
from sltt_jax.streaming import stream


def cut(inputs, size):
    return (np.asarray(inputs[t : t + size]) for t in range(0, len(inputs), size))


@pytest.mark.parametrize(
    ("rule", "size"), [(sltt(), 1), (sltt(4), 4), (tbptt(4), 4), (sltt_k(2), 1)], ids=str
)
@pytest.mark.parametrize("name", ["two_matrices", "convnet"])
def test_same_result_as_with_all_steps_at_once(x64, name, rule, size):
    n = net(name)
    f = stream(rule, n.apply, n.step_loss)
    got = f(n.params, n.state, cut(n.inputs, size), n.target, jax.random.key(7), T=T)
    expected = gradient(name, rule)
    assert_close(got, expected, 1e-12)
    # A second run, of the same compiled function and state.
    assert_close(f(n.params, n.state, cut(n.inputs, size), n.target, jax.random.key(7), T=T), got, 0)


def bytes_on_device():
    return sum(x.nbytes for x in jax.live_arrays())


@pytest.mark.parametrize(("rule", "size"), [(sltt(chunk=2), 2), (sltt_k(1, draw="first"), 1)], ids=str)
def test_device_memory_does_not_grow_with_the_stream(x64, rule, size):
    n = convnet()
    f = stream(rule, n.apply, n.step_loss)
    block = np.random.default_rng(0).normal(size=(size, *n.inputs.shape[1:]))
    peaks = []
    for steps in (8, 64):
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


def test_impossible_streams(x64):
    n = net("two_matrices")

    def f(rule, blocks, T=4, **kwargs):
        return stream(rule, n.apply, n.step_loss)(n.params, n.state, blocks, n.target, T=T, **kwargs)

    def of(*lengths):
        return [np.zeros((length, 4, 5)) for length in lengths]

    with pytest.raises(ValueError, match="bptt needs all time steps"):
        f(bptt(), of(4))
    with pytest.raises(ValueError, match="block at step 0 of T=4 must hold 2 steps, got 3"):
        f(sltt(2), of(3, 1))
    with pytest.raises(ValueError, match="block at step 2 of T=5 must hold 2 steps, got 1"):
        f(sltt(2), of(2, 1, 2), T=5)
    with pytest.raises(ValueError, match="block at step 4 of T=4 must hold 0 steps, got 2"):
        f(sltt(2), of(2, 2, 2))
    with pytest.raises(ValueError, match="ended after 2 of T=4"):
        f(sltt(2), of(2))
    with pytest.raises(ValueError, match="at least one time step, got T=0"):
        f(sltt(2), of(0))
    with pytest.raises(ValueError, match="T must be >= 1, got 0"):
        f(sltt(1), of(), T=0)
    with pytest.raises(ValueError, match="k=5 is more than the T=4"):
        f(sltt_k(5, draw="last"), of(1, 1, 1, 1))
