import numpy as np
import pytest

from sltt_jax.data.temporal import delayed_recall, sequential_digits, temporal_xor


def test_delayed_recall():
    task = delayed_recall(2000, 5, classes=3, seed=1)
    assert task.x.shape == (2000, 7, 4) and task.x.dtype == np.float32 and task.y.dtype == np.int32
    np.testing.assert_array_equal(task.x[:, 0, :3].argmax(1), task.y)
    assert (task.x.sum((1, 2)) == 2).all() and not task.x[:, 1:-1].any() and (task.x[:, -1, 3] == 1).all()
    assert task.asked.tolist() == [False] * 6 + [True] and task.without_memory == 1 / 3
    np.testing.assert_allclose(np.bincount(task.y) / 2000, 1 / 3, atol=0.05)
    np.testing.assert_array_equal(delayed_recall(2000, 5, classes=3, seed=1).x, task.x)
    assert (delayed_recall(2000, 5, classes=3, seed=2).y != task.y).any()


def test_temporal_xor_needs_both_cues():
    task = temporal_xor(4000, 3)
    assert task.x.shape == (4000, 5, 4) and (task.x.sum((1, 2)) == 2).all() and not task.x[:, 1:-1].any()
    first, second = task.x[:, 0, 1], task.x[:, -1, 3]
    np.testing.assert_array_equal(task.y, first != second)
    for seen in (first, second):  # one cue alone leaves it at chance
        for value in (0, 1):
            assert abs(task.y[seen == value].mean() - 0.5) < 0.05
    assert task.without_memory == 0.5


def test_sequential_digits():
    train, test = sequential_digits()
    assert train.x.shape == (1437, 8, 8) and test.x.shape == (360, 8, 8)
    assert 0.1 < test.without_memory < 0.7
    # The whole image is worth more than its last row: what the task asks for is in the past.
    distance = np.square(test.x[:, None] - train.x[None]).sum((2, 3))
    assert (train.y[distance.argmin(1)] == test.y).mean() > 0.95


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: delayed_recall(0, 1), "n must be >= 1, got 0"),
        (lambda: delayed_recall(1, -1), "delay must be >= 0, got -1"),
        (lambda: delayed_recall(1, 1, classes=1), "classes must be >= 2, got 1"),
        (lambda: temporal_xor(1, -2), "delay must be >= 0, got -2"),
    ],
)
def test_wrong_numbers(call, message):
    with pytest.raises(ValueError, match=message):
        call()
