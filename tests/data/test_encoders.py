import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax.blocks import Repeat
from sltt_jax.data import augment, encoders

KEY = jax.random.key(0)
X = np.array([[[[0, 255], [51, 102]]], [[[255, 0], [204, 153]]]], np.uint8)  # [2, 1, 2, 2]
NORMALISED = np.array([[[[-2.5, 7.5], [-1.5, 1.5]]], [[[2.5, -2.5], [1.5, 3.5]]]], np.float32)


def mirror(key, x):
    """An augmentation that a test can foresee."""
    chex.assert_trees_all_equal_dtypes(key, KEY)
    return x[:, :, ::-1]


def test_direct(compiled):
    encode = encoders.direct(5, mean=(0.5, 0.25), std=(0.2, 0.1), augmentation=mirror)
    for key, x in ((None, NORMALISED), (KEY, NORMALISED[:, :, ::-1])):
        inputs = compiled(encode)(X, key)
        assert isinstance(inputs, Repeat) and inputs.T == 5
        chex.assert_trees_all_close(inputs.x, x, rtol=1e-5)
        flat = compiled(encoders.flat(encode))(X, key)
        chex.assert_trees_all_close(flat, Repeat(x.reshape(2, -1), 5), rtol=1e-5)


def test_direct_leaves_images_alone_without_mean_and_std():
    chex.assert_trees_all_equal(encoders.direct(1)(X, KEY).x, X)
    with pytest.raises(ValueError, match="T must be >= 1, got 0"):
        encoders.direct(0)
    for half in ({"mean": (0.5,)}, {"std": (0.5,)}):
        with pytest.raises(ValueError, match="mean and std go together"):
            encoders.direct(1, **half)


def test_event_frames(compiled):
    x = np.random.default_rng(2).integers(0, 9, (4, 3, 6, 6, 2)).astype(np.uint16)
    encode = encoders.event_frames(augmentation=augment.random_flip)
    frames = compiled(encode)(x, None)
    chex.assert_type(frames, jnp.uint16)
    chex.assert_trees_all_equal(frames, x.swapaxes(0, 1))
    flipped = np.asarray(augment.random_flip(KEY, x)).swapaxes(0, 1)
    assert (flipped != frames).any()
    chex.assert_trees_all_equal(compiled(encode)(x, KEY), flipped)
    scaled = compiled(encoders.event_frames(scale=0.5))(x, KEY)
    chex.assert_type(scaled, jnp.float32)
    chex.assert_trees_all_equal(scaled, 0.5 * x.swapaxes(0, 1).astype(np.float32))
    chex.assert_shape(encoders.flat(encoders.event_frames())(x, None), (3, 4, 72))


def test_pixels_in_turn():
    """All pixels, each once, in the same order for all images."""
    x = np.arange(32, dtype=np.uint8).reshape(2, 4, 4, 1)
    one, four = (encoders.pixel_sequence(T, 16)(jnp.asarray(x), None) for T in (16, 4))
    assert one.shape == (16, 2, 1) and four.shape == (4, 2, 4)
    order = np.round(np.asarray(one)[:, 0, 0] * 255).astype(int)
    assert sorted(order) == list(range(16)) and list(order) != list(range(16))
    np.testing.assert_allclose(one[:, 1, 0], (order + 16) / 255, rtol=1e-6)
    np.testing.assert_array_equal(four[:, 0].ravel(), one[:, 0].ravel())
    other = encoders.pixel_sequence(16, 16, seed=1)(jnp.asarray(x), None)
    assert not np.array_equal(other, one)
    for wrong in (0, 3):
        with pytest.raises(ValueError, match=f"T must divide the 16 pixels of an image, got {wrong}"):
            encoders.pixel_sequence(wrong, 16)
