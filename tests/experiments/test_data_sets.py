"""The data sets by name."""

import jax
import numpy as np
import pytest
from common import data_sets, opened
from common.configs import Config


def test_validation_samples_are_not_trained_on():
    split = lambda share, seed=3: opened.split_indices(
        50, Config("digits", "digits", validation=share, seed=seed, batch_size=16)
    )
    kept, held = split(0.2)
    assert len(held) == 10 and sorted([*kept, *held]) == list(range(50))
    assert held.tolist() != list(range(10)) and len(split(0.0)[1]) == 0
    assert held.tolist() != split(0.2, seed=4)[1].tolist()
    assert (len(split(0.02)[1]), len(split(0.68)[0])) == (1, 16)
    for share, kept in ((0.009, 0), (0.7, 35)):
        with pytest.raises(ValueError, match=f"validation {share} keeps {kept} of 50 samples and leaves"):
            split(share)


@pytest.mark.parametrize("name", ["cifar10", "mnist", "dvs_cifar10", "fsdd"])
def test_made_up_data_can_be_learnt(name):
    """The class whose mean is nearest is mostly the right one; of ten classes a guess is right at 0.1."""
    made = data_sets.SPECS[name].make(4, train=300, test=100, seed=0)
    flat = lambda x: x.reshape(len(x), -1).astype(np.float32)
    means = np.stack([flat(made.train_x[made.train_y == k]).mean(0) for k in range(10)])
    distances = np.linalg.norm(flat(made.test_x)[:, None] - means, axis=-1)
    assert (distances.argmin(-1) == made.test_y).mean() > 0.8
    assert len(np.unique(made.train_y)) == 10


@pytest.mark.slow
@pytest.mark.parametrize(("name", "white"), [("digits", 1.0), ("mnist", 255)])
def test_images_as_spikes(name, white):
    """Of an image whose left half is black and whose right half is white; the key is that of evaluation."""
    form, expected = data_sets.SPECS[name], {"rate": (0, 8), "latency": (0, 1), "population": (3, 3)}
    x = np.zeros((1, *form.shape), np.float32 if white == 1 else np.uint8)
    x[:, :, form.shape[1] // 2 :] = white
    for encoding, spikes in expected.items():
        found = form.encoder(Config(name, name, encoding=encoding, T=8))(x, None)
        height, width, _ = form.shape
        assert found.dtype == np.uint8 and found.shape[:4] == (8, 1, height, width)
        count = np.asarray(found).sum((0, -1))[0]
        assert (count[:, : width // 2] == spikes[0]).all() and (count[:, width // 2 :] == spikes[1]).all()
    flat = form.encoder(Config(name, name, encoding="rate", model="mlp", T=8))(x, jax.random.key(0))
    assert flat.shape == (8, 1, x.size)
