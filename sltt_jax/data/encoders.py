"""Encoders make a network's inputs of a batch, on the device: augmented, normalised, with a time axis.

    direct, rate, latency       values, such as images
    event_frames, delta         sequences: event counts, and the changes of what is measured
    population, flat            go around one of these

Batches have their samples first, so that they can be shared by devices; inputs and targets of a network have
time first.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sltt_jax.blocks import PerStep, PyTree, Repeat
from sltt_jax.data import augment

Augmentation = Callable[[jax.Array, jax.Array], jax.Array]

# `encode(x [B, ...], key) -> inputs`, as the rules take them; a key of None leaves out what is random.
Encoder = Callable[[jax.Array, jax.Array | None], jax.Array | Repeat]

# `encode_target(y [B, ...]) -> target`, as the rules take it.
TargetEncoder = Callable[[PyTree], PyTree]


def direct(
    T: int,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    augmentation: Augmentation | None = None,
) -> Encoder:
    """Encodes images as the paper does, directly: the same analogue image `[B, ...]` at each of T steps.

    Args:
      T: time steps, >= 1.
      mean, std: of pixels in 0..1, one a channel; both or none. With them the images are pixels in 0..255.
      augmentation: `(key, x) -> x`, before normalisation.

    Raises:
      ValueError: T is below 1, or one of `mean` and `std` is missing.
    """
    _check_T(T)
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std go together, got {mean} and {std}")

    def encode(x, key):
        x = _augmented(augmentation, x, key)
        return Repeat(x if mean is None or std is None else augment.normalise(x, mean, std), T)

    return encode


def event_frames(*, augmentation: Augmentation | None = None, scale: float | None = None) -> Encoder:
    """Encodes event counts `[B, T, H, W, C]`: frame t at step t, where the network makes it float32.

    Args:
      augmentation: `(key, x) -> x`.
      scale: multiplies them, and makes all of them float32 at once; None leaves them as they are.
    """

    def encode(x, key):
        x = _augmented(augmentation, x, key)
        x = jnp.moveaxis(x, 1, 0)
        return x if scale is None else scale * x.astype(jnp.float32)

    return encode


def rate(T: int, *, low: float = 0.0, high: float = 1.0, augmentation: Augmentation | None = None) -> Encoder:
    """Encodes values as rates: at each of T steps a spike, with the value as its probability.

        s[t] ~ Bernoulli(p)                             p = (x - low) / (high - low), at least 0 and at most 1

    As snnTorch's `rate` and SpikingJelly's `PoissonEncoder`. All steps are drawn at once, a byte a spike, so
    that memory grows with T. Without a key, as in evaluation, a fixed one draws: spikes are still random, but
    a batch always has the same.

    Args:
      T: time steps, >= 1.
      low, high: the values that never and always spike; 0 and 255 of pixels.
      augmentation: `(key, x) -> x`, before it.

    Returns:
      The encoder of values `[B, ...]` as spikes `[T, B, ...]`, uint8.

    Raises:
      ValueError: T is below 1, or `low` not below `high`.
    """
    _check_T(T)
    _check_range(low, high)

    def encode(x, key):
        x = _augmented(augmentation, x, key)
        # Folded, so that the spikes do not depend on what the augmentation drew.
        key = jax.random.fold_in(jax.random.key(0) if key is None else key, 1)
        p = _share(x, low, high)
        return jax.random.bernoulli(key, p[None], (T, *p.shape)).astype(jnp.uint8)

    return encode


def latency(
    T: int,
    *,
    tau: float | None = None,
    threshold: float = 0.01,
    low: float = 0.0,
    high: float = 1.0,
    augmentation: Augmentation | None = None,
) -> Encoder:
    """Encodes each value as the time of a single spike, the earlier the larger it is.

        p = (x - low) / (high - low), at least 0 and at most 1
        t = round((T - 1) (1 - p))                      by default: the largest at step 0
        t = round(tau log(p / (p - threshold)))         with `tau`: when a current p takes a membrane to it

    There is no spike of p <= threshold, nor at a time after the last step. These are the codes of
    snnTorch's `latency` with `clip` (and with `normalize` where it is `linear`); the linear one is that of
    SpikingJelly's `LatencyEncoder`.

    Args:
      T: time steps, >= 1.
      tau: time constant of the membrane in steps, > 0.
      threshold: what p must be above, between 0 and 1.
      low, high: the values of p = 0 and 1; 0 and 255 of pixels.
      augmentation: `(key, x) -> x`, before it.

    Returns:
      The encoder of values `[B, ...]` as spikes `[T, B, ...]`, uint8.

    Raises:
      ValueError: an argument is outside its range.
    """
    _check_T(T)
    _check_range(low, high)
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be between 0 and 1, got {threshold}")
    if tau is not None and not tau > 0:
        raise ValueError(f"tau must be > 0 (in time steps), got {tau}")

    def encode(x, key):
        p = _share(_augmented(augmentation, x, key), low, high)
        spikes = p > threshold
        if tau is None:
            time = (T - 1) * (1 - p)
        else:
            time = tau * jnp.log(p / jnp.where(spikes, p - threshold, 1))
        steps = jnp.expand_dims(jnp.arange(T), range(1, p.ndim + 1))
        return (spikes[None] & (jnp.round(time)[None] == steps)).astype(jnp.uint8)

    return encode


def delta(threshold: float, *, augmentation: Augmentation | None = None) -> Encoder:
    """Encodes the changes of sequences, as on and off spikes.

        on[t] = x[t] - x[t-1] >= threshold              off[t] = x[t-1] - x[t] >= threshold

    At step 0 nothing has changed. What changes by less than the threshold in a step is not seen, however long
    it goes on. In snnTorch's `delta` (here with its `padding`) off spikes are -1 in the channel of the on
    spikes.

    Args:
      threshold: > 0.
      augmentation: `(key, x) -> x`, before it.

    Returns:
      The encoder of sequences `[B, T, ..., C]` as spikes `[T, B, ..., 2 C]`, uint8, on before off.

    Raises:
      ValueError: the threshold is not above 0 or, when it encodes, a sequence has no channels.
    """
    if not threshold > 0:
        raise ValueError(f"threshold must be > 0, got {threshold}")

    def encode(x, key):
        if x.ndim < 3:
            raise ValueError(f"delta needs sequences [B, T, ..., C], got shape {x.shape}")
        x = jnp.moveaxis(_augmented(augmentation, x, key), 1, 0).astype(jnp.float32)
        change = jnp.diff(x, axis=0, prepend=x[:1])
        return jnp.concatenate([change >= threshold, -change >= threshold], -1).astype(jnp.uint8)

    return encode


def population(
    encode: Encoder, neurons: int, *, low: float = 0.0, high: float = 1.0, beta: float = 1.5
) -> Encoder:
    """Makes each value the responses of neurons with Gaussian receptive fields, which `encode` then encodes.

        r[i] = exp(-(x - mu[i])^2 / (2 sigma^2))        i = 0..neurons-1
        mu[i] = low + (i - 1/2) (high - low) / (neurons - 2)
        sigma = (high - low) / (beta (neurons - 2))

    `population(latency(T), 8)` is that of Bohte et al. 2002: the better a neuron responds the earlier is its
    spike. With `direct(T)` the responses are currents.

    Args:
      encode: of the responses, 0..1, `[B, ..., C * neurons]`; an augmentation of it sees these.
      neurons: of each value, >= 3; those of a channel are neighbours.
      low, high: the range that the fields cover; the outermost are centred half a distance outside of it.
      beta: narrowness of the fields, > 0.

    Raises:
      ValueError: an argument is outside its range or, when it encodes, the values have no channels.
    """
    if neurons < 3:
        raise ValueError(f"neurons must be >= 3, got {neurons}")
    if not beta > 0:
        raise ValueError(f"beta must be > 0, got {beta}")
    _check_range(low, high)
    distance = (high - low) / (neurons - 2)

    def encoded(x, key):
        if x.ndim < 2:
            raise ValueError(f"population needs values [B, ..., C], got shape {x.shape}")
        centres = jnp.expand_dims(jnp.arange(neurons) - 0.5, range(x.ndim))
        away = (x[..., None] - low) / distance - centres
        responses = jnp.exp(-((beta * away) ** 2) / 2)
        return encode(responses.reshape(*x.shape[:-1], -1), key)

    return encoded


def pixel_sequence(T: int, pixels: int, *, seed: int = 0) -> Encoder:
    """Encodes images as sequences: `pixels / T` pixels a step, in an order that is drawn once for all images.

    With a pixel a step it is permuted sequential MNIST (Le et al. 2015).

    Args:
      T: time steps, a divisor of `pixels`.
      pixels: of an image, `H * W * C`.
      seed: of the order.

    Returns:
      The encoder of pixels `[B, H, W, C]` in 0..255 as `[T, B, pixels / T]` in 0..1.

    Raises:
      ValueError: T does not divide `pixels`.
    """
    if T < 1 or pixels % T:
        raise ValueError(f"T must divide the {pixels} pixels of an image, got {T}")
    order = np.random.default_rng(seed).permutation(pixels)

    def encode(x, key):
        del key
        x = x.reshape(len(x), pixels)[:, order].reshape(len(x), T, -1)
        return jnp.moveaxis(x, 1, 0).astype(jnp.float32) / 255

    return encode


def per_step(y: PyTree) -> PerStep:
    """Encodes the targets of every step, a pytree of arrays `[B, T, ...]`, as `PerStep` of `[T, B, ...]`."""
    return PerStep(jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), y))


def flat(encode: Encoder) -> Encoder:
    """Makes height, width and channels of what `encode` returns one axis, for fully connected networks."""

    def flattened(x, key):
        return jax.tree.map(lambda a: a.reshape(*a.shape[:-3], -1), encode(x, key))

    return flattened


def _augmented(augmentation, x, key):
    return x if augmentation is None or key is None else augmentation(key, x)


def _share(x, low, high):
    """Takes low..high to 0..1, and what is beyond to these."""
    return jnp.clip((x - low) / (high - low), 0, 1)


def _check_T(T):
    if T < 1:
        raise ValueError(f"T must be >= 1, got {T}")


def _check_range(low, high):
    if not low < high:
        raise ValueError(f"low must be below high, got {low} and {high}")
