"""What a network makes a device do, worked out by hand."""

import numpy as np
import pytest

from sltt_jax.analysis.activity import Activity, Weights
from sltt_jax.analysis.traffic import traffic

# Three steps of an image of 4 pixels, 5 LIF neurons, then 2 adaptive ones with lateral weights.
MEASURED = Activity(
    rates={"lif": np.asarray([0.2, 0.4, 0.0], "f4"), "alif": np.asarray([0.0, 0.5, 1.0], "f4")},
    neurons={"lif": np.full(5, 0.2, "f4"), "alif": np.full(2, 0.5, "f4")},
    weights={
        "first": Weights(np.float32(20), np.asarray([15, 15, 15], "f4"), np.asarray(True)),
        "second": Weights(np.float32(10), np.asarray([2, 4, 0], "f4"), np.asarray(False)),
        "lateral": Weights(np.float32(4), np.asarray([0, 2, 4], "f4"), np.asarray(False)),
    },
)
STATE = {
    "membrane": {
        "lif": {"v": np.zeros((8, 5))},
        "cell": {"alif": {"v": np.zeros((8, 2)), "a": np.zeros((8, 2)), "s": np.zeros((8, 2))}},
    },
    "batch_stats": {"mean": np.zeros(7)},
}


def test_counts_of_a_sample():
    found = traffic(MEASURED, STATE)
    assert found.synaptic_operations == 2 + 4 + 2 + 4
    assert found.analogue_macs == 3 * 20
    assert found.weight_reads == 12 + 60
    assert found.spikes == pytest.approx(5 * 0.6 + 2 * 1.5)
    assert found.neuron_updates == 3 * (5 + 2)
    assert found.state_reads == found.state_writes == 3 * (5 + 3 * 2)
    assert found.bytes() == 72 * 1 + 66 * 4
    assert found.bytes(weight_bits=4, state_bits=16) == 72 / 2 + 66 * 2


def test_bad_arguments():
    with pytest.raises(ValueError, match="must have membranes in the collection 'membrane'"):
        traffic(MEASURED, {"batch_stats": STATE["batch_stats"]})
