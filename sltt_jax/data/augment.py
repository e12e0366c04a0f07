"""Augmentation and normalisation on the device: pure functions of a key and a batch, part of the update.

Every function draws for each sample by itself and keeps shape and dtype. Images are `[B, H, W, C]`, events
are frames `[B, T, H, W, C]` whose steps are all moved alike.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def random_crop(key: jax.Array, x: jax.Array, padding: int = 4) -> jax.Array:
    """Pads images with zeros on all sides and cuts windows of their own size out of them.

    Args:
      key: draws the places.
      x: `[B, H, W, C]`.
      padding: pixels on each side, >= 0.
    """
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    corners = jax.random.randint(key, (len(x), 2), 0, 2 * padding + 1)
    cut = lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), x.shape[1:])
    return jax.vmap(cut)(padded, corners)


def random_flip(key: jax.Array, x: jax.Array) -> jax.Array:
    """Mirrors every other sample left to right, `[B, ..., H, W, C]`."""
    flip = jax.random.bernoulli(key, shape=(len(x),) + (1,) * (x.ndim - 1))
    return jnp.where(flip, x[..., ::-1, :], x)


def cutout(
    key: jax.Array,
    x: jax.Array,
    *,
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.4, 2.5),
    fill: tuple[int, int] = (0, 255),
) -> jax.Array:
    """Paints a rectangle of one random grey over some images, as the `Cutout` of the SLTT authors' code.

    Share of the image and ratio of the sides are uniform; a rectangle that does not fit is drawn again (with
    the defaults one in a thousand), at most four times.

    Args:
      key: draws everything.
      x: pixels in 0..255 before normalisation, `[B, H, W, C]`.
      probability: share of images that are painted.
      area: bounds of the rectangle's share of the image.
      aspect: bounds of width over height.
      fill: bounds of the grey value, the upper one excluded.
    """
    height, width = x.shape[1:3]

    def paint(key, image):
        keys = jax.random.split(key, 6)
        tries = 4
        target = jax.random.uniform(keys[0], (tries,), minval=area[0], maxval=area[1]) * height * width
        ratio = jax.random.uniform(keys[1], (tries,), minval=aspect[0], maxval=aspect[1])
        w, h = jnp.round(jnp.sqrt(target * ratio)), jnp.round(jnp.sqrt(target / ratio))
        fits = (w < width) & (h < height)
        chosen = jnp.argmax(fits)
        w, h = w[chosen], h[chosen]
        top = jnp.floor(jax.random.uniform(keys[2]) * (height - h + 1))
        left = jnp.floor(jax.random.uniform(keys[3]) * (width - w + 1))
        rows, columns = jnp.arange(height)[:, None], jnp.arange(width)[None]
        inside = (rows >= top) & (rows < top + h) & (columns >= left) & (columns < left + w)
        grey = jax.random.randint(keys[4], (), *fill).astype(image.dtype)
        use = jax.random.bernoulli(keys[5], probability) & fits.any()
        return jnp.where((inside & use)[..., None], grey, image)

    return jax.vmap(paint)(jax.random.split(key, len(x)), x)


def random_roll(key: jax.Array, x: jax.Array, pixels: int = 5) -> jax.Array:
    """Rolls samples by up to `pixels` along height and width, `[B, ..., H, W, C]`."""
    shifts = jax.random.randint(key, (len(x), 2), -pixels, pixels + 1)
    return jax.vmap(lambda sample, shift: jnp.roll(sample, shift, (-3, -2)))(x, shifts)


def normalise(x: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Maps pixels in 0..255 to `(x / 255 - mean) / std`, float32, channels last."""
    along = lambda values: jax.lax.broadcast_to_rank(jnp.asarray(values), x.ndim)
    return (x.astype(jnp.float32) / 255 - along(mean)) / along(std)


def cifar(key: jax.Array, x: jax.Array) -> jax.Array:
    """Crops, cuts out and flips as the paper does on CIFAR; pixels `[B, H, W, C]` in 0..255."""
    crop_key, cutout_key, flip_key = jax.random.split(key, 3)
    return random_flip(flip_key, cutout(cutout_key, random_crop(crop_key, x)))
