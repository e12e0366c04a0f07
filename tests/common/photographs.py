"""Photographs and the archives that they come in, made up."""

import io
import tarfile

import numpy as np
from PIL import Image


def ramp(width, height):
    """Red tells the column and green the row of a pixel, as shares of 256."""
    x, y = np.arange(width) * 256 // width, np.arange(height) * 256 // height
    return Image.fromarray(np.stack([*np.meshgrid(x, y), np.zeros((height, width))], -1).astype(np.uint8))


def encoded(image, form="JPEG", **options):
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def photo(i):
    return Image.new("RGB", (40 + i, 30), (40 * i, 0, 100))


def tar(files):
    """An archive of `{name: bytes}`, or of headers alone."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            if isinstance(data, tarfile.TarInfo):  # `addfile` wants what a header says, from Python 3.13 on
                archive.offset += out.write(data.tobuf())
                continue
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()
