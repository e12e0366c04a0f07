import dataclasses

import numpy as np
import pytest

from sltt_jax.data import ArrayData, load_digits


def test_digits():
    data = load_digits()
    assert data.train_x.shape == (1437, 8, 8, 1) and data.test_x.shape == (360, 8, 8, 1)
    assert data.train_x.dtype == np.float32 and data.train_x.min() == 0 and data.train_x.max() == 1
    # Stratified: every class has its share of the test set, to one sample.
    share = np.bincount(data.test_y) / np.bincount(np.concatenate([data.train_y, data.test_y]))
    np.testing.assert_allclose(share, 360 / 1797, atol=1 / 170)
    again = load_digits()
    np.testing.assert_array_equal(again.test_x, data.test_x)
    # No image is in both.
    train = {x.tobytes() for x in data.train_x}
    assert not any(x.tobytes() in train for x in data.test_x)


GOOD = ArrayData(np.zeros((4, 2)), np.array([0, 1, 2, 1]), np.zeros((3, 2)), np.array([0, 1, 2]), classes=3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_y": np.array([0, 1, 3, 1])}, r"train: label 3 of sample 2 is outside 0..2"),
        ({"test_y": np.array([0, -1, 1])}, r"test: label -1 of sample 1 is outside 0..2"),
        ({"test_y": np.array([0.0, 1, 1])}, r"test: labels must be integers, got float64"),
        (
            {"test_y": np.array([0, 1])},
            r"test: expected N >= 1 inputs and labels \[N\], got \(3, 2\) and \(2,\)",
        ),
        (
            {"train_x": np.zeros((4, 2), int)},
            r"train: inputs must be floating point or unsigned .* got int64",
        ),
        ({"train_x": np.zeros((4, 2), np.uint8)}, r"differ in shape or type: \(\(2,\), dtype\('uint8'\)\)"),
        ({"train_x": np.array([[0, 0], [0, np.nan], [0, 0], [0, 0]])}, r"train: input 1 is not finite"),
        ({"train_x": np.zeros((4, 3))}, r"differ in shape or type: \(\(3,\)"),
        ({"test_x": np.zeros((0, 2)), "test_y": np.zeros(0, int)}, r"test: expected N >= 1"),
    ],
)
def test_wrong_data(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(GOOD, **change)
