"""Encoders make a network's inputs of a batch, on the device: augmented, normalised, with a time axis.

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
    if T < 1:
        raise ValueError(f"T must be >= 1, got {T}")
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std go together, got {mean} and {std}")

    def encode(x, key):
        if augmentation is not None and key is not None:
            x = augmentation(key, x)
        return Repeat(x if mean is None or std is None else augment.normalise(x, mean, std), T)

    return encode


def event_frames(*, augmentation: Augmentation | None = None, scale: float | None = None) -> Encoder:
    """Encodes event counts `[B, T, H, W, C]`: frame t at step t, where the network makes it float32.

    Args:
      augmentation: `(key, x) -> x`.
      scale: multiplies them, and makes all of them float32 at once; None leaves them as they are.
    """

    def encode(x, key):
        if augmentation is not None and key is not None:
            x = augmentation(key, x)
        x = jnp.moveaxis(x, 1, 0)
        return x if scale is None else scale * x.astype(jnp.float32)

    return encode


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
