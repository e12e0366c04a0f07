import functools
from itertools import islice

import jax
import numpy as np
import pytest

from sltt_jax.data import ArrayBatches, Prefetch, padded_batches

X, Y = np.arange(10.0), np.arange(10)


def take(batches, n):
    return [np.asarray(b["x"]).tolist() for b in islice(batches, n)]


def test_epochs_of_array_batches():
    batches = ArrayBatches(X, Y, 3, seed=0)
    assert batches.steps_per_epoch == 3
    epochs = [np.concatenate(take(batches, 3)) for _ in range(3)]
    for epoch in epochs:
        assert len(set(epoch)) == 9
    assert (epochs[0] != epochs[1]).any() and (epochs[1] != epochs[2]).any()
    again = ArrayBatches(X, Y, 3, seed=0)
    np.testing.assert_array_equal(np.concatenate(take(again, 9)), np.concatenate(epochs))
    assert take(ArrayBatches(X, Y, 3, seed=1), 3) != take(ArrayBatches(X, Y, 3, seed=0), 3)
    for batch in islice(ArrayBatches(X, Y, 3, seed=0), 5):
        np.testing.assert_array_equal(batch["x"], batch["y"])


@pytest.mark.parametrize("wrap", [lambda b: b, Prefetch, lambda b: Prefetch(b, 5)])
@pytest.mark.parametrize("consumed", [0, 1, 3, 4, 7])
def test_state_is_of_the_very_batch(wrap, consumed):
    whole = take(ArrayBatches(X, Y, 3, seed=0), 12)
    batches = wrap(ArrayBatches(X, Y, 3, seed=0))
    assert take(batches, consumed) == whole[:consumed]
    state = batches.get_state()
    assert take(batches, 2) == whole[consumed : consumed + 2]  # the state is not moved by what comes after
    fresh = wrap(ArrayBatches(X, Y, 3, seed=0))
    take(fresh, 2)
    fresh.set_state(state)
    assert fresh.get_state() == state
    assert take(fresh, 12 - consumed) == whole[consumed:]


@pytest.mark.parametrize(
    ("other", "state"),
    [
        (ArrayBatches(X, Y, 2, seed=0), {}),
        (ArrayBatches(X[:9], Y[:9], 3, seed=0), {}),
        (ArrayBatches(X, Y, 3, seed=1), {}),
        (ArrayBatches(X, Y, 3, seed=0), {"batch": 4}),
    ],
)
def test_a_position_in_other_batches_is_refused(other, state):
    batches = ArrayBatches(X, Y, 3, seed=0)
    take(batches, 2)
    with pytest.raises(ValueError, match="is no position in batches of "):
        other.set_state(batches.get_state() | state)


def test_prefetched_batches_are_on_the_device():
    batches = Prefetch(ArrayBatches(X, Y, 3, seed=0))
    assert batches.steps_per_epoch == 3
    assert all(isinstance(a, jax.Array) for a in jax.tree.leaves(next(batches)))


def test_processes_share_every_batch():
    whole = take(ArrayBatches(X, Y, 4, seed=0), 4)
    parts = [take(ArrayBatches(X, Y, 4, seed=0, process=p, processes=2), 4) for p in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


BUILDERS = [functools.partial(ArrayBatches, seed=0), padded_batches]


@pytest.mark.parametrize("build", BUILDERS, ids=["in a drawn order", "padded"])
@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.arange(25), r"y must be an array \[N, ...\] of the N=10 samples of x, got shape \(25,\)"),
        (np.arange(6), r"y must be .* got shape \(6,\)"),
        ({"y": Y, "weight": np.ones(9)}, r"y\['weight'\] must be .* got shape \(9,\)"),
        (Y.tolist(), r"y\[0\] must be .* got shape \(\)"),
    ],
)
def test_inputs_and_labels_are_of_the_same_samples(build, y, message):
    with pytest.raises(ValueError, match=message):  # at the call, before there is a batch
        build(X, y, 5)


@pytest.mark.parametrize("build", BUILDERS, ids=["in a drawn order", "padded"])
@pytest.mark.parametrize("size", [0, -5, 2.5])
def test_a_batch_has_samples(build, size):
    with pytest.raises(ValueError, match=rf"batch_size must be a whole number >= 1, got {size}"):
        build(X, Y, size)


def test_wrong_batches():
    with pytest.raises(ValueError, match=r"batch_size must be in 1..10, .* got 11"):
        ArrayBatches(X, Y, 11, seed=0)
    for settings in ({"processes": 3}, {"process": 2, "processes": 2}):
        with pytest.raises(ValueError, match="cannot have its part of 4 samples"):
            ArrayBatches(X, Y, 4, seed=0, **settings)
    with pytest.raises(ValueError, match="size must be >= 1, got 0"):
        Prefetch(ArrayBatches(X, Y, 4, seed=0), 0)


def test_padded_batches_count_every_sample_once():
    x, y = np.arange(1.0, 11), np.arange(1, 11)
    batches = list(padded_batches(x, y, 4))
    assert [b["mask"].sum() for b in batches] == [4, 4, 2] and all(len(b["x"]) == 4 for b in batches)
    kept = np.concatenate([b["x"][b["mask"] == 1] for b in batches])
    np.testing.assert_array_equal(kept, x)
    assert sum((b["y"] * b["mask"]).sum() for b in batches) == y.sum()
