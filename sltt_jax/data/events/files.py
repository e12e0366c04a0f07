"""Readers of the files that event cameras write: N-MNIST, AEDAT 2.0, 3.1 and 4.0, and cut gestures.

Every reader returns `Events` and raises `ValueError` with the file's name where its bytes are wrong. Events
whose time runs back by no more than `MAX_BACKWARD` are sorted, and counted in `Events.reordered`.
"""

import re
import struct
from pathlib import Path

import numpy as np

from sltt_jax.data.events.binning import Events

# A lost wrap of the DVS128's 14-bit time counter sets an event back by 16,384 us, which is less than a frame.
# More than that is another recording, or damage, and sorting would mix what does not belong together.
MAX_BACKWARD = 20_000


def read_nmnist(path: str | Path) -> Events:
    """Reads an N-MNIST recording (Orchard et al. 2015), 34x34 pixels.

    5 bytes an event, big endian: x, y, and 1 bit of polarity before 23 bits of microseconds. As in the
    authors' reader (eventvision.py), y = 240 marks no event but an overflow of the clock: from there on
    8,192 us are added.

    Raises:
      ValueError: the file is empty or not of whole events, an event lies outside the sensor, or time jumps
        back.
    """
    rows = np.frombuffer(_whole(path, Path(path).read_bytes(), 5), np.uint8).reshape(-1, 5)
    x, y, high, middle, low = rows.T.astype(np.int64)
    overflow = y == 240
    t = ((high & 127) << 16 | middle << 8 | low) + 8192 * np.cumsum(overflow)
    return _events(path, *(a[~overflow] for a in (t, x, y, high >> 7)), height=34, width=34)


def read_aedat(path: str | Path) -> Events:
    """Reads an AEDAT recording of a DVS128, 128x128 pixels: version 2.0, 3.1 or 4.0, as its first line says.

    Raises:
      ValueError: the file is none of these, is truncated, holds no events, an event lies outside the sensor,
        or time jumps back.
      ModuleNotFoundError: the file is in AEDAT 4.0 and the package aedat is not installed.
    """
    data = Path(path).read_bytes()
    version = re.match(rb"#!AER-DAT(2\.0|3\.1|4\.0)\r?\n", data)
    if not version:
        raise ValueError(f"{path}: not an AEDAT 2.0, 3.1 or 4.0 file, it begins with {data[:14]!r}")
    if version[1] == b"4.0":
        return _read_aedat4(path)
    return _read_aedat2(path, data) if version[1] == b"2.0" else _read_aedat3(path, data)


def _read_aedat2(path, data: bytes) -> Events:
    """Reads AEDAT 2.0: header lines with '#', then big-endian address and microseconds, 4 bytes each.

    A DVS128's address holds the polarity (bit 0, 1 = OFF), x (bits 1-7, counted from the right), y (bits
    8-14), and in bit 15 the mark of what is no event of a pixel. So read jAER's class DVS128, dat2mat.m, to
    which the README of CIFAR10-DVS points, and the SLTT authors; later versions of SpikingJelly turn the
    picture by 90 degrees.
    """
    start = 0
    while data[start : start + 1] == b"#":
        start = data.find(b"\n", start) + 1 or len(data)
    address, t = np.frombuffer(_whole(path, data[start:], 8), ">u4").reshape(-1, 2).T.astype(np.int64)
    if (address >> 16).any():
        i = np.flatnonzero(address >> 16)[0]
        raise ValueError(f"{path}: event {i} has address {address[i]:#x}, not one of a DVS128 (16 bits)")
    pixel = address >> 15 == 0
    address, t = address[pixel], t[pixel]
    return _events(path, t, 127 - (address >> 1 & 127), address >> 8, 1 - (address & 1))


def _read_aedat3(path, data: bytes) -> Events:
    """Reads AEDAT 3.1: a text header, then packets of a 28-byte header and events, all little endian.

    A polarity event (type 1) is 8 bytes: valid (bit 0), polarity (bit 1), y (bits 2-16), x (bits 17-31), and
    31 bits of microseconds, above which stands the packet's overflow count. Other packets are skipped.
    """
    end = re.search(rb"#!END-HEADER\r?\n", data)
    if not end:
        raise ValueError(f"{path}: the AEDAT 3.1 header has no end")
    start, words, times = end.end(), [], []
    while start < len(data):
        if len(data) - start < 28:
            raise ValueError(f"{path}: truncated: {len(data) - start} bytes for a packet header of 28")
        kind, _, size, _, overflow, _, number, _ = struct.unpack_from("<2h6i", data, start)
        start, length = start + 28, size * number
        if min(kind, size, overflow, number) < 0 or (kind == 1 and size != 8):
            raise ValueError(f"{path}: damaged packet header at byte {start - 28}")
        if len(data) - start < length:
            raise ValueError(f"{path}: truncated: {len(data) - start} bytes for a packet of {length}")
        if kind == 1:
            packet = np.frombuffer(data, "<u4", 2 * number, start).reshape(-1, 2).astype(np.int64)
            words.append(packet[:, 0])
            times.append(packet[:, 1] + (overflow << 31))
        start += length
    word, t = (np.concatenate([np.zeros(0, np.int64), *a]) for a in (words, times))
    valid = word & 1 == 1
    word, t = word[valid], t[valid]
    return _events(path, t, word >> 17, word >> 2 & 0x7FFF, word >> 1 & 1)


def _read_aedat4(path) -> Events:
    try:
        import aedat
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{path} is in AEDAT 4.0, which needs: pip install aedat") from error
    try:
        decoder = aedat.Decoder(path)
        streams = {i for i, stream in decoder.id_to_stream().items() if stream["type"] == "events"}
        packets = [packet["events"] for packet in decoder if packet["stream_id"] in streams]
    except Exception as error:  # which ones the package raises is not documented
        raise ValueError(f"{path}: {error}") from error
    if len(streams) != 1 or not packets:
        raise ValueError(
            f"{path}: {len(packets)} packets of {len(streams)} event streams, expected one stream"
        )
    e = np.concatenate(packets)
    return _events(path, *(e[name].astype(np.int64) for name in ("t", "x", "y", "on")))


def read_gesture_npy(path: str | Path) -> Events:
    """Reads a gesture of the cut release of DVS128 Gesture: `.npy`, `[N, 4]`, x, y, p, and t in milliseconds.

    Raises:
      ValueError: the file is no such array, an event lies outside the sensor, or time jumps back.
    """
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: not a NumPy file: {error}") from error
    if rows.ndim != 2 or rows.shape[1] != 4 or not np.isfinite(rows).all() or (rows[:, :3] % 1).any():
        raise ValueError(f"{path}: expected finite [N, 4] with whole x, y, p, got {rows.dtype} {rows.shape}")
    x, y, p = rows[:, :3].T.astype(np.int64)
    return _events(path, np.rint(rows[:, 3] * 1000).astype(np.int64), x, y, p)


def _whole(path, data: bytes, size: int) -> bytes:
    if len(data) % size:
        raise ValueError(f"{path}: truncated: {len(data)} bytes are not a multiple of {size}, an event's")
    return data


def _events(path, t, x, y, p, *, height: int = 128, width: int = 128) -> Events:
    """Sorts and checks events; errors name the file."""
    behind = np.maximum.accumulate(t) - t
    reordered = int(np.count_nonzero(behind))
    if reordered:
        if behind.max() > MAX_BACKWARD:
            raise ValueError(
                f"{path}: at event {behind.argmax()} time runs back by {behind.max()} us, "
                f"more than {MAX_BACKWARD}: not one recording"
            )
        order = np.argsort(t, kind="stable")
        t, x, y, p = t[order], x[order], y[order], p[order]
    try:
        return Events(t, x, y, p, height, width, reordered)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
