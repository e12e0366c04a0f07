import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax.blocks import Repeat
from sltt_jax.data import augment, encoders

pytestmark = pytest.mark.usefixtures("quick_compile")

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


def test_rate(compiled):
    """Of 4,000 draws the share that spikes is within five standard deviations of the value."""
    x = np.array([[0.0, 0.2, 1.0], [-3.0, 0.5, 9.0]], np.float32)
    encode = compiled(encoders.rate(4000))
    spikes = encode(x, KEY)
    chex.assert_type(spikes, jnp.uint8)
    p = np.clip(x, 0, 1)
    np.testing.assert_array_less(abs(spikes.mean(0) - p), 5 * np.sqrt(p * (1 - p) / 4000) + 1e-6)
    assert abs(np.corrcoef(spikes[1:, 1, 1], spikes[:-1, 1, 1])[0, 1]) < 0.1  # steps are drawn apart
    assert (spikes != encode(x, jax.random.key(1))).any()
    chex.assert_trees_all_equal(encode(x, None), encode(x, None))
    np.testing.assert_allclose(encode(x, None).mean(0), p, atol=0.05)


def test_rate_of_pixels_and_augmentation(compiled):
    spikes = compiled(encoders.rate(2000, high=255, augmentation=mirror))(X, KEY)
    np.testing.assert_allclose(spikes.mean(0), X[:, :, ::-1] / 255, atol=0.06)


def test_latency(compiled):
    """T = 5: 0.76 spikes at round(4 * 0.24) = 1, and 0.01 is not above the threshold."""
    x = np.array([[1.0, 0.76, 0.5, 0.05, 0.01, 0.0, 2.0]])
    spikes = compiled(encoders.latency(5))(x, KEY)
    chex.assert_type(spikes, jnp.uint8)
    chex.assert_shape(spikes, (5, 1, 7))
    assert [np.flatnonzero(s).tolist() for s in spikes[:, 0].T] == [[0], [1], [2], [4], [], [], [0]]
    pixels = compiled(encoders.latency(5, high=255, augmentation=mirror))(X, KEY)
    chex.assert_trees_all_equal(pixels, encoders.latency(5)(X[:, :, ::-1] / 255, None))
    assert encoders.latency(1)(x, None).tolist() == [[[1, 1, 1, 1, 0, 0, 1]]]


def test_latency_of_a_membrane(compiled):
    """tau = 4, threshold 0.2: 4 log(1/0.8) = 0.89, 4 log 2 = 2.77, 4 log(0.21/0.01) = 12.2 is too late."""
    x = np.array([[1.0, 0.4, 0.21, 0.2, 0.0]], np.float32)
    spikes = compiled(encoders.latency(10, tau=4.0, threshold=0.2))(x, None)
    assert [np.flatnonzero(s).tolist() for s in spikes[:, 0].T] == [[1], [3], [], [], []]


def test_delta(compiled):
    x = np.array([5, 5, 7, 6, 6, 3, 4], np.uint8)[None, :, None]  # [1, 7, 1]; 6 - 7 must not become 255
    spikes = compiled(encoders.delta(2.0))(np.concatenate([x, 2 * x], -1), None)
    chex.assert_type(spikes, jnp.uint8)
    on, off = [0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0]
    twice = [0, 0, 1, 0, 0, 0, 1], [0, 0, 0, 1, 0, 1, 0]
    assert spikes[:, 0].T.tolist() == [on, twice[0], off, twice[1]]
    flipped = encoders.delta(2.0, augmentation=lambda key, x: x[:, ::-1])(x, KEY)
    assert flipped[:, 0, 0].tolist() == [0, 0, 1, 0, 0, 0, 0] and flipped[5, 0, 1] == 1
    with pytest.raises(ValueError, match=r"sequences \[B, T, ..., C\], got shape \(1, 7\)"):
        encoders.delta(2.0)(x[..., 0], None)


def test_population(compiled):
    """Four neurons over 0..2: centres -0.5, 0.5, 1.5 and 2.5, sigma = 1 / 2."""
    x = np.array([[0.5, 2.0]], np.float32)
    inputs = compiled(encoders.population(encoders.direct(3), 4, high=2.0, beta=2.0))(x, None)
    near, far, farther = np.exp(-0.5), np.exp(-4.5), np.exp(-12.5)
    expected = [np.exp(-2), 1, np.exp(-2), np.exp(-8), farther, far, near, near]
    assert inputs.T == 3
    np.testing.assert_allclose(inputs.x, [expected], rtol=1e-5)
    # Spikes at round(9 (1 - r)): 0.135 at 8, 0.607 at 4, and 0.011 is above the threshold.
    spikes = compiled(encoders.population(encoders.latency(10), 4, high=2.0, beta=2.0))(x, None)
    assert [np.flatnonzero(s).tolist() for s in spikes[:, 0].T] == [[8], [0], [8], [], [], [9], [4], [4]]
    maps = encoders.population(encoders.rate(2, high=1), 5, high=255)(X, None)
    chex.assert_shape(maps, (2, 2, 1, 2, 10))
    with pytest.raises(ValueError, match=r"values \[B, ..., C\], got shape \(3,\)"):
        encoders.population(encoders.direct(3), 4)(np.zeros(3), None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: encoders.rate(0), "T must be >= 1, got 0"),
        (lambda: encoders.latency(0), "T must be >= 1, got 0"),
        (lambda: encoders.rate(2, low=1.0), "low must be below high, got 1.0 and 1.0"),
        (lambda: encoders.latency(2, low=2.0), "low must be below high, got 2.0 and 1.0"),
        (lambda: encoders.latency(2, threshold=0.0), "threshold must be between 0 and 1, got 0.0"),
        (lambda: encoders.latency(2, threshold=1.0), "threshold must be between 0 and 1, got 1.0"),
        (lambda: encoders.latency(2, tau=0.0), r"tau must be > 0 \(in time steps\), got 0.0"),
        (lambda: encoders.delta(0.0), "threshold must be > 0, got 0.0"),
        (lambda: encoders.population(encoders.direct(2), 2), "neurons must be >= 3, got 2"),
        (lambda: encoders.population(encoders.direct(2), 4, beta=0.0), "beta must be > 0, got 0.0"),
        (lambda: encoders.population(encoders.direct(2), 4, high=0.0), "low must be below high"),
    ],
)
def test_what_no_encoder_can_do(make, message):
    with pytest.raises(ValueError, match=message):
        make()
