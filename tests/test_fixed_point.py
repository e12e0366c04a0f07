"""Neurons in integers against hand-computed numbers, a loop in NumPy and the float neuron."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import Neuron, lif
from sltt_jax.fixed_point import (
    IntegerNeuron,
    integer_lif,
    integer_lif_step,
    integer_neuron,
    membrane_bits,
    membrane_range,
)
from sltt_jax.quantisation import quantise

pytestmark = pytest.mark.usefixtures("quick_compile")
HARD = {"v_reset": 0.0}


def written_out(v, xs, thresholds, shift):
    """The same in NumPy and 64 bits, a neuron at a time: membranes before the reset, and spikes."""
    us, spikes = np.zeros(xs.shape, np.int64), np.zeros(xs.shape, np.int64)
    for neuron in np.ndindex(v.shape):
        u = int(v[neuron])
        for t in range(len(xs)):
            u = u - u // 2**shift + int(xs[(t, *neuron)])
            us[(t, *neuron)] = u
            if u >= thresholds[neuron[-1]]:
                spikes[(t, *neuron)], u = 1, 0
    return us, spikes


def test_steps_worked_out_by_hand(compiled):
    """Threshold 10, a quarter leaks; what leaks is rounded towards minus infinity."""
    step = compiled(integer_lif_step)
    neuron = IntegerNeuron(threshold=10, shift=2)
    v = jnp.asarray([0, 7, 7, 3, -1, -5], jnp.int32)
    x = jnp.asarray([10, 3, 4, 0, 0, 0], jnp.int32)
    v, s = step(v, x, neuron)
    # 7 >> 2 = 1, 3 >> 2 = 0: it stays; -1 >> 2 = -1 and -5 >> 2 = -2.
    assert v.tolist() == [0, 9, 0, 3, 0, -3] and s.tolist() == [1, 0, 1, 0, 0, 0]
    assert v.dtype == s.dtype == jnp.int32


@pytest.mark.parametrize("shift", [0, 1, 3])
def test_equal_to_a_loop_of_python_integers(shift):
    rng = np.random.default_rng(shift)
    xs = rng.integers(-300, 400, (40, 6, 5)).astype(np.int32)
    v = rng.integers(-500, 100, (6, 5)).astype(np.int32)
    thresholds = np.asarray([100, 250, 400, 700, 1200], np.int32)
    us, expected = written_out(v, xs, thresholds, shift)
    end, spikes = jax.jit(integer_lif)(v, xs, IntegerNeuron(thresholds, shift))
    np.testing.assert_array_equal(spikes, expected)
    np.testing.assert_array_equal(end, np.where(expected[-1], 0, us[-1]))
    assert 0.02 < expected.mean() < 0.6 and (us < 0).any()


@pytest.mark.parametrize("tau", [1.0, 2.0, 8.0])
def test_equal_to_the_float_neuron_where_that_is_exact(tau, x64):
    """Currents in multiples of tau^T units: no step of T then has anything to round."""
    T, scale = 5, 2.0**-14
    rng = np.random.default_rng(0)
    xs = int(tau) ** T * rng.integers(-6, 8, (T, 8, 16))
    neuron = Neuron(tau, v_threshold=scale * 4.5 * tau**T, **HARD)
    start = np.zeros((8, 16))
    v, spikes = jax.jit(lif)(start, scale * xs, neuron)
    integer = integer_neuron(neuron, scale)
    integer_v, integer_spikes = jax.jit(integer_lif)(start.astype(np.int32), xs.astype(np.int32), integer)
    np.testing.assert_array_equal(integer_spikes, spikes)
    np.testing.assert_array_equal(integer_v * scale, v)
    if tau == 1:
        return
    assert 0.02 < spikes.mean() < 0.6
    # The control: finer currents are rounded by the shift, and in time spikes differ.
    fine = rng.integers(-6, 8, (200, 8, 16)).astype(np.int32)
    neuron = Neuron(tau, v_threshold=11.0, **HARD)
    _, spikes = jax.jit(lif)(start, fine.astype(float), neuron)
    _, integer_spikes = jax.jit(integer_lif)(start.astype(np.int32), fine, integer_neuron(neuron, 1.0))
    assert 0 < (integer_spikes != spikes).mean() < 0.2


def test_the_threshold_is_the_least_integer_that_reaches_it():
    for v_threshold, scale, threshold in ((1.0, 0.25, 4), (1.0, 0.3, 4), (1.0, 2.0, 1), (0.7, 0.1, 7)):
        assert int(integer_neuron(Neuron(4.0, v_threshold, **HARD), scale).threshold) == threshold
    scales = jnp.asarray([[0.5, 0.125]])
    neuron = integer_neuron(Neuron(4.0, **HARD), scales)
    assert neuron.threshold.tolist() == [[2, 8]] and neuron.shift == 2


@pytest.mark.parametrize(
    ("neuron", "scale", "message"),
    [
        (Neuron(1.1, **HARD), 0.1, r"needs tau = 1, 2, 4, ... 2\^16, the same for all neurons, got 1.1"),
        (Neuron(3.0, **HARD), 0.1, "got 3.0"),
        (Neuron(np.inf, **HARD), 0.1, "got inf"),
        (Neuron(np.asarray([2.0, 4.0]), **HARD), 0.1, "got .2. 4.."),
        (Neuron(2.0), 0.1, "v_reset must be 0.0, got None"),
        (Neuron(2.0, v_reset=-0.5), 0.1, "v_reset must be 0.0, got -0.5"),
        (Neuron(2.0, decay_input=True, **HARD), 0.1, "put 1/tau of decay_input into weights"),
        (Neuron(2.0, **HARD), 0.0, "scale must be > 0, got 0.0"),
        (Neuron(2.0, **HARD), 1e-10, "v_threshold is 1e.10 units of the membrane"),
    ],
)
def test_neurons_without_an_integer_form(neuron, scale, message):
    with pytest.raises(ValueError, match=message):
        integer_neuron(neuron, scale)


def test_bad_arguments():
    v = jnp.zeros((2, 3), jnp.int32)
    for bad, message in ((v.astype(float), "must be int32, got float"), (v[:1], r"membrane \(2, 3\) and")):
        with pytest.raises(ValueError, match=message):
            integer_lif_step(v, bad, IntegerNeuron(1, 1))
    with pytest.raises(ValueError, match=r"shift must be in 0\.\.16, got 17"):
        IntegerNeuron(1, 17)
    with pytest.raises(ValueError, match="threshold must be an integer >= 1, got 0"):
        IntegerNeuron(0, 1)


@pytest.mark.parametrize("shift", [0, 2])
def test_the_range_of_a_membrane_is_reached_and_never_left(shift):
    largest, neuron = 9, IntegerNeuron(21, shift)
    lowest, highest = membrane_range(neuron, largest)
    rng = np.random.default_rng(0)
    xs = np.concatenate([np.full((60, 400), -largest), rng.integers(-largest, largest + 1, (400, 400))])
    us, _ = written_out(np.zeros(400), xs.astype(np.int32), [21] * 400, shift)
    assert (us.min(), us.max()) == (lowest, highest)
    assert 2 ** (membrane_bits(neuron, largest) - 1) > max(highest, -lowest - 1)
    assert 2 ** (membrane_bits(neuron, largest) - 2) <= max(highest, -lowest - 1)


def test_what_does_not_fit_wraps_around():
    """And `membrane_bits` has told."""
    largest = 2**30
    neuron = IntegerNeuron(100, 2)
    assert membrane_bits(neuron, largest) == 33 and membrane_bits(neuron, largest // 2) == 32
    inhibited = lambda x: integer_lif(
        jnp.zeros((1, 1), jnp.int32), jnp.full((50, 1, 1), x, jnp.int32), neuron
    )
    assert inhibited(-largest)[1].any() and not inhibited(-largest // 2)[1].any()


def test_a_layer_in_integers_is_the_float_layer_of_rounded_weights():
    """Spike by spike, in a layer without memory, where nothing is rounded but the weights."""
    rng = np.random.default_rng(0)
    w = rng.normal(0, 0.4, (12, 20)).astype(np.float32)
    xs = rng.binomial(1, 0.4, (30, 8, 12))
    found = quantise({"w": w}, 6, per_channel=True, power_of_two=True)
    neuron = Neuron(1.0, v_threshold=0.8, **HARD)
    v = np.zeros((8, 20))
    _, spikes = jax.jit(lif)(v.astype(np.float32), xs.astype(np.float32) @ found.params["w"], neuron)
    integer = integer_neuron(neuron, found.scales["w"])
    currents = (xs @ np.asarray(found.integers["w"], np.int64)).astype(np.int32)
    _, integer_spikes = jax.jit(integer_lif)(v.astype(np.int32), currents, integer)
    np.testing.assert_array_equal(integer_spikes, spikes)
    assert 0.02 < spikes.mean() < 0.6 and len(np.unique(integer.threshold)) > 1
