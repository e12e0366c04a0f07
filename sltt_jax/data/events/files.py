"""Readers of the files that event cameras write: N-MNIST, AEDAT 2.0, 3.1 and 4.0, and cut gestures.

Every reader returns `Events` and raises `DamagedFile`, a ValueError with the file's name, where its bytes
are wrong. Events whose time runs back by no more than `MAX_BACKWARD` are sorted, and counted in
`Events.reordered`.
"""

import io
import math
import re
import struct
from pathlib import Path

import numpy as np

from sltt_jax.damage import check_is_file, reading
from sltt_jax.data.events.binning import Events
from sltt_jax.data.events.foreign import decode

# A lost wrap of the DVS128's 14-bit time counter sets an event back by 16,384 us, which is less than a frame.
# More than that is another recording, or damage, and sorting would mix what does not belong together.
MAX_BACKWARD = 20_000


def read_nmnist(path: str | Path) -> Events:
    """Reads an N-MNIST recording (Orchard et al. 2015), 34x34 pixels.

    5 bytes an event, big endian: x, y, and 1 bit of polarity before 23 bits of microseconds. As in the
    authors' reader (eventvision.py), y = 240 marks no event but an overflow of the clock: from there on
    8,192 us are added.

    Raises:
      DamagedFile: the file is empty or not of whole events, an event lies outside the sensor, or time jumps
        back.
    """
    check_is_file(path)
    data = Path(path).read_bytes()
    with reading(path, "an N-MNIST recording"):
        x, y, high, middle, low = _words(data, np.uint8, 5)
        overflow = y == 240
        t = ((high & 127) << 16 | middle << 8 | low) + 8192 * np.cumsum(overflow)
        return _events(*(a[~overflow] for a in (t, x, y, high >> 7)), height=34, width=34)


def read_aedat(path: str | Path) -> Events:
    """Reads an AEDAT recording of a DVS128, 128x128 pixels: version 2.0, 3.1 or 4.0, as its first line says.

    Raises:
      DamagedFile: the file is none of these, is truncated, holds no events, an event lies outside the sensor,
        or time jumps back.
      ModuleNotFoundError: the file is in AEDAT 4.0 and the package aedat is not installed.
    """
    check_is_file(path)
    data = Path(path).read_bytes()
    with reading(path, "an AEDAT 2.0, 3.1 or 4.0 recording"):
        version = re.match(rb"#!AER-DAT(2\.0|3\.1|4\.0)\r?\n", data)
        if not version:
            raise ValueError(f"it begins with {data[:14]!r}")
        if version[1] == b"4.0":
            events = decode("aedat", path)
            return _events(*(events[name] for name in "txyp"))
        return _aedat2(data) if version[1] == b"2.0" else _aedat3(data)


def _aedat2(data: bytes) -> Events:
    """Reads AEDAT 2.0: header lines with '#', then big-endian address and microseconds, 4 bytes each.

    A DVS128's address holds the polarity (bit 0, 1 = OFF), x (bits 1-7, counted from the right), y (bits
    8-14), and in bit 15 the mark of what is no event of a pixel. So read jAER's class DVS128, dat2mat.m, to
    which the README of CIFAR10-DVS points, and the SLTT authors; later versions of SpikingJelly turn the
    picture by 90 degrees.
    """
    start = 0
    while data[start : start + 1] == b"#":
        start = data.find(b"\n", start) + 1 or len(data)
    address, t = _words(data[start:], ">u4", 2)
    if (address >> 16).any():
        i = np.flatnonzero(address >> 16)[0]
        raise ValueError(f"event {i} has address {address[i]:#x}, not one of a DVS128 (16 bits)")
    pixel = address >> 15 == 0
    address, t = address[pixel], t[pixel]
    return _events(t, 127 - (address >> 1 & 127), address >> 8, 1 - (address & 1))


def _aedat3(data: bytes) -> Events:
    """Reads AEDAT 3.1: a text header, then packets of a 28-byte header and events, all little endian.

    A polarity event (type 1) is 8 bytes: valid (bit 0), polarity (bit 1), y (bits 2-16), x (bits 17-31), and
    31 bits of microseconds, above which stands the packet's overflow count. Other packets are skipped.
    """
    end = re.search(rb"#!END-HEADER\r?\n", data)
    if not end:
        raise ValueError("the header has no end")
    start, words, times = end.end(), [], []
    while start < len(data):
        if len(data) - start < 28:
            raise ValueError(f"truncated: {len(data) - start} bytes for a packet header of 28")
        kind, _, size, _, overflow, _, number, _ = struct.unpack_from("<2h6i", data, start)
        start, length = start + 28, size * number
        if min(kind, size, overflow, number) < 0 or (kind == 1 and size != 8):
            raise ValueError(f"damaged packet header at byte {start - 28}")
        if len(data) - start < length:
            raise ValueError(f"truncated: {len(data) - start} bytes for a packet of {length}")
        if kind == 1:
            word, t = _words(data[start : start + length], "<u4", 2)
            words.append(word)
            times.append(t + (overflow << 31))
        start += length
    word, t = (np.concatenate([np.zeros(0, np.int64), *a]) for a in (words, times))
    valid = word & 1 == 1
    word, t = word[valid], t[valid]
    return _events(t, word >> 17, word >> 2 & 0x7FFF, word >> 1 & 1)


def read_gesture_npy(path: str | Path) -> Events:
    """Reads a gesture of the cut release of DVS128 Gesture: `.npy`, `[N, 4]`, x, y, p, and t in milliseconds.

    Raises:
      DamagedFile: the file is no such array, an event lies outside the sensor, or time jumps back.
    """
    check_is_file(path)
    data = Path(path).read_bytes()
    with reading(path, "a NumPy file of events"):
        rows = _npy(data)
        if rows.ndim != 2 or rows.shape[1] != 4:
            raise ValueError(f"expected numbers [N, 4], x, y, p and t, got {rows.dtype} {rows.shape}")
        if len(wrong := np.argwhere(~np.isfinite(rows))):
            raise ValueError(f"event {wrong[0, 0]} has {'xypt'[wrong[0, 1]]} = {rows[tuple(wrong[0])]}")
        if len(wrong := np.argwhere(rows[:, :3] % 1 != 0)):
            i, column = wrong[0]
            raise ValueError(f"event {i} has {'xyp'[column]} = {rows[i, column]}, no whole number")
        t = np.rint(rows[:, 3].astype(np.float64) * 1000)
        # Below 2^53 float64 holds every whole number, and int64 all of these.
        columns = np.column_stack([rows[:, :3].astype(np.float64), t])
        if len(wrong := np.argwhere(np.abs(columns) >= 2**53)):
            i, name = wrong[0, 0], "xypt"[wrong[0, 1]]
            raise ValueError(f"event {i} has {name} = {columns[tuple(wrong[0])]}, beyond 2^53")
        x, y, p = rows[:, :3].T.astype(np.int64)
        return _events(t.astype(np.int64), x, y, p)


def _npy(data: bytes) -> np.ndarray:
    """Reads real numbers in format 1.0 or 2.0, of which as many must follow as the header says."""
    file = io.BytesIO(data)
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    version = np.lib.format.read_magic(file)
    if version not in headers:
        raise ValueError(f"its format is {version}, expected 1.0 or 2.0")
    shape, fortran_order, dtype = headers[version](file, max_header_size=1000)
    if dtype.kind not in "fiu":
        raise ValueError(f"it holds {dtype}, expected real numbers")
    start = file.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(f"its header says {dtype} {shape}, but {len(data) - start} bytes follow")
    return np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran_order else "C")


def _words(data: bytes, dtype, number: int) -> np.ndarray:
    """Columns of rows of `number` words, `[number, N]`, int64."""
    size = number * np.dtype(dtype).itemsize
    if len(data) % size:
        raise ValueError(f"truncated: {len(data)} bytes are not a multiple of {size}, an event's")
    return np.frombuffer(data, dtype).reshape(-1, number).T.astype(np.int64)


def _events(t, x, y, p, *, height: int = 128, width: int = 128) -> Events:
    """Sorts and checks events."""
    behind = np.maximum.accumulate(t) - t
    reordered = int(np.count_nonzero(behind))
    if reordered:
        if behind.max() > MAX_BACKWARD:
            raise ValueError(
                f"at event {behind.argmax()} time runs back by {behind.max()} us, "
                f"more than {MAX_BACKWARD}: not one recording"
            )
        order = np.argsort(t, kind="stable")
        t, x, y, p = t[order], x[order], y[order], p[order]
    return Events(t, x, y, p, height, width, reordered)
