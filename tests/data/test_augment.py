import itertools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax.data import augment

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(0)
X = np.random.default_rng(0).integers(1, 256, (300, 6, 7, 2)).astype(np.uint8)


def test_random_crop_is_a_window_of_the_padded_image(compiled):
    got = compiled(partial(augment.random_crop, padding=2))(KEY, X)
    chex.assert_equal_shape_prefix([got, X], 4)
    chex.assert_type(got, np.uint8)
    padded = np.pad(X, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for image, whole in zip(np.asarray(got), padded, strict=True):
        corners = itertools.product(range(5), range(5))
        places = [(i, j) for i, j in corners if (whole[i : i + 6, j : j + 7] == image).all()]
        assert len(places) == 1
        seen |= set(places)
    assert len(seen) == 25


def test_random_flip_takes_half_of_the_samples(compiled):
    for x in (X, np.repeat(X[:, None], 3, 1)):
        got = np.asarray(compiled(augment.random_flip)(KEY, x))
        flipped = np.array([(g == s[..., ::-1, :]).all() for g, s in zip(got, x, strict=True)])
        kept = np.array([(g == s).all() for g, s in zip(got, x, strict=True)])
        assert (flipped ^ kept).all() and 0.4 < flipped.mean() < 0.6


def test_cutout_paints_one_grey_rectangle():
    x = jnp.full((2000, 32, 24, 3), -1.0)
    got = np.asarray(jax.jit(augment.cutout)(KEY, x))
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


@pytest.mark.slow
def test_cutout_is_the_same_without_jit():
    """Operation by operation it takes forty programs."""
    x = X[:20]
    got = augment.cutout(KEY, x)
    chex.assert_trees_all_equal(got, jax.jit(augment.cutout)(KEY, x))
    assert 0 < (np.asarray(got) != x).any((1, 2, 3)).sum() < 20


def test_cutout_leaves_all_alone_at_probability_0():
    chex.assert_trees_all_equal(jax.jit(partial(augment.cutout, probability=0.0))(KEY, X[:3]), X[:3])


def test_random_roll_moves_all_frames_of_a_sample_alike(compiled):
    x = np.repeat(np.random.default_rng(1).integers(0, 9, (60, 1, 16, 16, 2)), 4, 1)
    got = np.asarray(compiled(partial(augment.random_roll, pixels=3))(KEY, x))
    shifts = set()
    for sample, frames in zip(got, x, strict=True):
        assert (sample == sample[0]).all()
        moves = [(i, j) for i in range(-3, 4) for j in range(-3, 4)]
        found = [m for m in moves if (np.roll(frames[0], m, (0, 1)) == sample[0]).all()]
        assert len(found) == 1
        shifts |= set(found)
    assert {i for i, _ in shifts} == {j for _, j in shifts} == set(range(-3, 4))


def test_normalise(compiled):
    got = compiled(partial(augment.normalise, mean=(0.5, 0.25), std=(0.2, 0.1)))(
        np.array([[0, 255]], np.uint8)
    )
    chex.assert_trees_all_close(got, np.array([[-2.5, 7.5]], np.float32), rtol=1e-6)


def test_cifar_draws_from_the_key_alone():
    f = jax.jit(augment.cifar)
    first, again, other = f(KEY, X), f(KEY, X), f(jax.random.key(1), X)
    chex.assert_trees_all_equal(first, again)
    chex.assert_trees_all_equal_shapes_and_dtypes(first, X)
    # Nearly all samples are moved or painted, and another key does it elsewhere.
    for one in (X, other):
        assert (np.asarray(first) != np.asarray(one)).any((1, 2, 3)).mean() > 0.9
