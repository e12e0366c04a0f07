"""The data sets by name."""

import numpy as np
import pytest
from common import data_sets


def test_validation_samples_are_not_trained_on():
    kept, held = data_sets.split_indices(50, 0.2, seed=3)
    assert len(held) == 10 and sorted([*kept, *held]) == list(range(50))
    assert held.tolist() != list(range(10)) and len(data_sets.split_indices(50, 0.0, seed=3)[1]) == 0
    other = data_sets.split_indices(50, 0.2, seed=4)[1]
    assert held.tolist() != other.tolist()


@pytest.mark.parametrize("name", ["cifar10", "mnist", "dvs_cifar10", "fsdd"])
def test_made_up_data_can_be_learnt(name):
    """The class whose mean is nearest is mostly the right one; of ten classes a guess is right at 0.1."""
    made = data_sets.SPECS[name].make(4, train=300, test=100, seed=0)
    flat = lambda x: x.reshape(len(x), -1).astype(np.float32)
    means = np.stack([flat(made.train_x[made.train_y == k]).mean(0) for k in range(10)])
    distances = np.linalg.norm(flat(made.test_x)[:, None] - means, axis=-1)
    assert (distances.argmin(-1) == made.test_y).mean() > 0.8
    assert len(np.unique(made.train_y)) == 10
