"""Photographs from elsewhere: only JPEG and PNG are opened, and none that is too large to be one."""

import io

from PIL import Image

# A quarter of a GB in memory; beyond it Pillow warns of a bomb. Photographs of ImageNet are far smaller.
LARGEST = 89_478_485


def open_image(data: bytes) -> Image.Image:
    """Opens an image, of which the header alone is read now.

    Pillow knows many other formats, and hands some of them to other programs.

    Raises:
      ValueError: it has more than `LARGEST` pixels.
      OSError: it is neither a JPEG nor a PNG.
    """
    image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
    if image.width * image.height > LARGEST:
        raise ValueError(f"it has {image.width} x {image.height} pixels, more than {LARGEST:,}")
    return image
