import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import training
from sltt_jax.blocks import Repeat
from sltt_jax.data import augment

KEY = jax.random.key(0)
X = np.random.default_rng(0).integers(1, 256, (300, 6, 7, 2)).astype(np.uint8)


def test_random_crop_is_a_window_of_the_padded_image():
    got = np.asarray(augment.random_crop(KEY, X, padding=2))
    padded = np.pad(X, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for image, source in zip(got, padded, strict=True):
        places = [(i, j) for i in range(5) for j in range(5) if (source[i : i + 6, j : j + 7] == image).all()]
        assert len(places) == 1
        seen |= set(places)
    assert len(seen) == 25 and got.dtype == np.uint8


def test_random_flip_takes_half_of_the_samples():
    for x in (X, np.repeat(X[:, None], 3, 1)):
        got = np.asarray(augment.random_flip(KEY, x))
        flipped = np.array([(g == s[..., ::-1, :]).all() for g, s in zip(got, x, strict=True)])
        kept = np.array([(g == s).all() for g, s in zip(got, x, strict=True)])
        assert (flipped ^ kept).all() and 0.4 < flipped.mean() < 0.6


def test_cutout_paints_one_grey_rectangle():
    x = jnp.full((2000, 32, 24, 3), -1.0)
    got = np.asarray(augment.cutout(KEY, x))
    painted = (got >= 0).any((1, 2, 3))
    assert 0.46 < painted.mean() < 0.54  # 4 standard deviations
    shares, ratios, greys = [], [], []
    for image in got[painted]:
        rows, columns = np.nonzero((image[..., 0] >= 0).any(1))[0], np.nonzero((image[..., 0] >= 0).any(0))[0]
        h, w = np.ptp(rows) + 1, np.ptp(columns) + 1
        rectangle = image[rows[0] : rows[0] + h, columns[0] : columns[0] + w]
        assert (rectangle == rectangle[0, 0, 0]).all() and (image >= 0).sum() == h * w * 3
        shares.append(h * w / (32 * 24))
        ratios.append(w / h)
        greys.append(rectangle[0, 0, 0])
    assert 0.01 < min(shares) < 0.05 and 0.35 < max(shares) < 0.45
    assert min(ratios) < 0.6 and max(ratios) > 1.8
    assert min(greys) < 10 and 245 < max(greys) <= 254 and all(g == int(g) for g in greys)
    np.testing.assert_array_equal(augment.cutout(KEY, X, probability=0.0), X)


def test_random_roll_moves_all_frames_of_a_sample_alike():
    x = np.repeat(np.random.default_rng(1).integers(0, 9, (60, 1, 16, 16, 2)), 4, 1)
    got = np.asarray(augment.random_roll(KEY, x, pixels=3))
    shifts = set()
    for sample, source in zip(got, x, strict=True):
        assert (sample == sample[0]).all()
        moves = [(i, j) for i in range(-3, 4) for j in range(-3, 4)]
        found = [m for m in moves if (np.roll(source[0], m, (0, 1)) == sample[0]).all()]
        assert len(found) == 1
        shifts |= set(found)
    assert {i for i, _ in shifts} == {j for _, j in shifts} == set(range(-3, 4))


def test_compositions_draw_from_the_key_alone():
    frames = np.repeat(X[:, None], 3, 1)
    for f, x in ((augment.cifar, X), (augment.events, frames)):
        a, b, c = jax.jit(f)(KEY, x), f(KEY, x), f(jax.random.key(1), x)
        np.testing.assert_array_equal(a, b)
        assert (np.asarray(a) != np.asarray(c)).any() and a.shape == x.shape and a.dtype == x.dtype


def test_image_encoder():
    encode = training.images(5, mean=(0.5, 0.25), std=(0.2, 0.1), augmentation=augment.random_flip)
    plain = encode(X, None)
    assert isinstance(plain, Repeat) and plain.T == 5
    np.testing.assert_allclose(plain.x, (X / 255 - [0.5, 0.25]) / [0.2, 0.1], rtol=1e-4, atol=1e-5)
    augmented = encode(X, KEY)
    np.testing.assert_allclose(
        augmented.x, encode(np.asarray(augment.random_flip(KEY, X)), None).x, rtol=1e-4, atol=1e-5
    )
    assert (np.asarray(augmented.x) != np.asarray(plain.x)).any()
    flat = training.flat(encode)(X, None)
    np.testing.assert_array_equal(flat.x, np.asarray(plain.x).reshape(300, -1))
    with pytest.raises(ValueError, match="T must be >= 1, got 0"):
        training.images(0)
    with pytest.raises(ValueError, match="mean and std go together"):
        training.images(1, mean=(0.5,))


def test_frame_encoder():
    x = np.random.default_rng(2).integers(0, 9, (4, 3, 6, 6, 2)).astype(np.uint16)
    got = training.frames(augmentation=augment.events)(x, None)
    np.testing.assert_array_equal(got, x.swapaxes(0, 1))
    assert got.dtype == jnp.uint16
    assert training.flat(training.frames())(x, None).shape == (3, 4, 72)
