"""Photographs from elsewhere: only JPEG and PNG are opened, and none that is too large to be one."""

import io

from PIL import Image, UnidentifiedImageError

SIZE = 224  # of photographs of ImageNet, as networks take them

# A quarter of a GB in memory; beyond it Pillow warns of a bomb. Photographs of ImageNet are far smaller.
LARGEST = 89_478_485


def open_image(data: bytes) -> Image.Image:
    """Opens an image, of which the header alone is read now.

    Pillow knows many other formats, and hands some of them to other programs.

    Raises:
      ValueError: it has more than `LARGEST` pixels.
      OSError: it is neither a JPEG nor a PNG.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
    except UnidentifiedImageError:
        raise OSError(f"it begins with {data[:8]!r}, and its header cannot be read") from None
    if image.width * image.height > LARGEST:
        raise ValueError(f"it has {image.width} x {image.height} pixels, more than {LARGEST:,}")
    return image


def resize_center_crop(image: Image.Image, resize: int = 256, size: int = SIZE) -> Image.Image:
    """Cuts the middle `size` x `size` out, with the shorter side at `resize` (as torchvision).

    Of a strip longer than 16:1 the middle alone is resized: 1 x 65,000 pixels would become 17 million rows.
    """
    short = min(image.size)
    left, top = (max(0, side - 16 * short) // 2 for side in image.size)
    image = image.crop((left, top, image.width - left, image.height - top)) if left or top else image
    width, height = (int(resize * side / short) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))
