import re
import struct
import sys

import numpy as np
import pytest

from sltt_jax.data.events import files
from sltt_jax.data.events.files import read_aedat, read_gesture_npy, read_nmnist
from sltt_jax.data.events.binning import Events, between, frames, resize_area

GOOD = Events(
    t=np.array([5, 6, 8, 20, 21]),
    x=np.array([0, 3, 3, 1, 0]),
    y=np.array([0, 2, 2, 1, 0]),
    p=np.array([0, 1, 1, 0, 1]),
    height=3,
    width=4,
)


def reference_frames(events, steps, split_by):
    """The definition, event by event."""
    out = np.zeros((steps, events.height, events.width, 2), int)
    n, d = len(events.t) // steps, (events.t[-1] - events.t[0]) // steps
    for i, (t, x, y, p) in enumerate(zip(events.t, events.x, events.y, events.p, strict=True)):
        bins = [
            b
            for b in range(steps - 1)
            if (b * n <= i < (b + 1) * n if split_by == "number" else b * d <= t - events.t[0] < (b + 1) * d)
        ]
        out[bins[0] if bins else steps - 1, y, x, p] += 1
    return out


def test_frames_by_hand():
    by_number = frames(GOOD, 2)  # events 0-1, and 2-4
    assert by_number.shape == (2, 3, 4, 2) and by_number.dtype == np.uint8
    assert {tuple(i): by_number[tuple(i)] for i in np.argwhere(by_number)} == {
        (0, 0, 0, 0): 1,
        (0, 2, 3, 1): 1,
        (1, 2, 3, 1): 1,
        (1, 1, 1, 0): 1,
        (1, 0, 0, 1): 1,
    }
    by_time = frames(GOOD, 2, split_by="time")  # t - t[0] < 8, and the rest
    assert by_time[0, 2, 3, 1] == 2 and by_time[0].sum() == 3 and by_time[1].sum() == 2


@pytest.mark.parametrize("split_by", ["number", "time"])
@pytest.mark.parametrize("steps", [1, 4, 7, 300])
def test_frames_are_the_definition(split_by, steps):
    r = np.random.default_rng(0)
    x, y, p = r.integers(0, [5, 4, 2], (200, 3)).T
    events = Events(np.sort(r.integers(0, 250, 200)), x, y, p, height=4, width=5)
    np.testing.assert_array_equal(
        frames(events, steps, split_by=split_by), reference_frames(events, steps, split_by)
    )


@pytest.mark.parametrize(("number", "dtype"), [(255, np.uint8), (256, np.uint16), (65_535, np.uint16)])
def test_counts_never_wrap(number, dtype):
    zero = np.zeros(number, int)
    out = frames(Events(zero, zero, zero, zero, 1, 1), 1)
    assert out.dtype == dtype and out.item(0) == number


def test_too_many_counts():
    zero = np.zeros(65_536, int)
    with pytest.raises(ValueError, match="a pixel counts 65536 events in one step"):
        frames(Events(zero, zero, zero, zero, 1, 1), 1)


def test_resize_area():
    counts = np.random.default_rng(0).integers(0, 9, (2, 8, 8, 2))
    np.testing.assert_array_equal(resize_area(counts, 4), counts.reshape(2, 4, 2, 4, 2, 2).sum((2, 4)))
    np.testing.assert_array_equal(resize_area(counts, 8), counts)
    # 3 pixels to 2: a border pixel is shared half and half, a corner in quarters.
    image = np.array([[4, 2, 0], [8, 4, 0], [0, 0, 0]])[None, :, :, None]
    np.testing.assert_array_equal(resize_area(image, 2)[0, ..., 0], [[4 + 1 + 4 + 1, 1 + 1], [4 + 1, 1]])
    image = np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]])[None, :, :, None]
    np.testing.assert_array_equal(resize_area(image, 2)[0, ..., 0], [[1, 1], [0, 0]])
    np.testing.assert_array_equal(resize_area(3 * np.ones((1, 128, 128, 1), int), 48), 3 * 64 / 9 // 1)
    assert frames(GOOD, 2, size=1).sum() == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 2, "split_by": "bins"}, 'split_by must be "number" or "time", got \'bins\''),
        ({"steps": 2, "size": 0}, "size must be in 1..3, the sensor's, got 0"),
        ({"steps": 2, "size": 4}, "size must be in 1..3, the sensor's, got 4"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        frames(GOOD, **options)


def test_between():
    cut = between(GOOD, 6, 20)
    assert cut.t.tolist() == [6, 8] and cut.x.tolist() == [3, 3] and cut.width == 4
    assert between(GOOD, 0, 22).t.tolist() == GOOD.t.tolist()
    for start, end in ((9, 20), (20, 6)):
        with pytest.raises(ValueError, match=f"no events from {start} to {end} us"):
            between(GOOD, start, end)


def nmnist_bytes(rows):
    return b"".join(bytes([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255]) for t, x, y, p in rows)


def aedat2_bytes(rows, header=b"#!AER-DAT2.0\r\n# This is a raw AE data file - do not edit\r\n"):
    return header + b"".join(struct.pack(">II", y << 8 | x << 1 | p, t) for t, x, y, p in rows)


def aedat3_packet(rows, *, kind=1, overflow=0):
    events = [struct.pack("<II", x << 17 | y << 2 | p << 1 | valid, t) for t, x, y, p, valid in rows]
    header = struct.pack("<2h6i", kind, 0, 8, 4, overflow, len(rows), len(rows), len(rows))
    return header + b"".join(events)


AEDAT3 = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"


def aedat4_bytes(rows):
    """An AEDAT 4.0 file of one uncompressed packet: two FlatBuffers, with their tables written by hand."""
    description = (
        b'<dv version="2.0"><node name="outInfo"><node name="0"><attr key="typeIdentifier">EVTS</attr>'
        b'<node name="info"><attr key="sizeX">128</attr><attr key="sizeY">128</attr></node>'
        b"</node></node></dv>"
    )
    header = struct.pack("<I4s5H2xiiII", 20, b"IOHE", 10, 12, 4, 0, 8, 12, 0, 4, len(description))
    header += description + b"\0"
    packet = struct.pack("<I4s3H2xiII", 16, b"EVTS", 6, 8, 4, 8, 4, len(rows))
    packet += b"".join(struct.pack("<qhh?3x", *row) for row in rows)
    sized = lambda data: struct.pack("<I", len(data)) + data
    return b"#!AER-DAT4.0\r\n" + sized(header) + struct.pack("<2i", 0, len(packet) + 4) + sized(packet)


def columns(events):
    return list(zip(*(getattr(events, name).tolist() for name in "txyp"), strict=True))


def write(folder, data, name="file"):
    (folder / name).write_bytes(data)
    return folder / name


def test_nmnist_file(tmp_path):
    rows = [(0x012345, 33, 0, 1), (0x012346, 0, 33, 0), (0x7FFFFF, 7, 8, 1)]
    events = read_nmnist(write(tmp_path, nmnist_bytes(rows)))
    assert columns(events) == rows
    assert (events.height, events.width, events.reordered) == (34, 34, 0)


def test_nmnist_overflow_of_the_clock(tmp_path):
    rows = [(8000, 1, 2, 1), (0, 0, 240, 0), (100, 3, 4, 0), (0, 0, 240, 0), (200, 5, 6, 1)]
    events = read_nmnist(write(tmp_path, nmnist_bytes(rows)))
    assert columns(events) == [(8000, 1, 2, 1), (8292, 3, 4, 0), (16584, 5, 6, 1)] and events.reordered == 0


def test_aedat2_file(tmp_path):
    # As stored: (t, x, y, 1 = OFF). x counts from the right.
    events = read_aedat(write(tmp_path, aedat2_bytes([(10, 0, 3, 1), (35, 127, 127, 0)])))
    assert columns(events) == [(10, 127, 3, 0), (35, 0, 127, 1)]
    assert (events.height, events.width) == (128, 128)
    # Bit 15 marks what no pixel sent.
    data = aedat2_bytes([(10, 0, 3, 1)]) + struct.pack(">II", 1 << 15, 11)
    assert columns(read_aedat(write(tmp_path, data))) == [(10, 127, 3, 0)]


def test_aedat3_file(tmp_path):
    first = aedat3_packet([(10, 5, 9, 1, 1), (11, 6, 7, 0, 0), (12, 127, 0, 0, 1)])
    other = aedat3_packet([(13, 1, 1, 1, 1)], kind=0)
    late = aedat3_packet([(3, 0, 127, 1, 1)], overflow=1)
    events = read_aedat(write(tmp_path, AEDAT3 + first + other + late))
    assert columns(events) == [(10, 5, 9, 1), (12, 127, 0, 0), (2**31 + 3, 0, 127, 1)]


def test_aedat4_file(tmp_path):
    pytest.importorskip("aedat", reason="AEDAT 4.0 is read by the optional package aedat")
    rows = [(1000, 3, 5, 1), (1500, 100, 127, 0)]
    path = write(tmp_path, aedat4_bytes(rows))
    assert columns(read_aedat(path)) == rows
    for data in (aedat4_bytes(rows)[:-5], aedat4_bytes(rows)[:60]):
        with pytest.raises(ValueError, match=re.escape(str(path))):
            read_aedat(write(tmp_path, data))


def test_aedat4_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "aedat", None)
    with pytest.raises(ModuleNotFoundError, match=r"file is in AEDAT 4.0, which needs: pip install aedat"):
        read_aedat(write(tmp_path, aedat4_bytes([(1000, 3, 5, 1)])))


def test_gesture_npy(tmp_path):
    np.save(tmp_path / "0.npy", np.array([[3, 4, 1, 0.25], [127, 0, 0, 1.001]]))
    assert columns(read_gesture_npy(tmp_path / "0.npy")) == [(250, 3, 4, 1), (1001, 127, 0, 0)]


def test_small_steps_back_in_time_are_sorted(tmp_path):
    rows = [(30_000, 1, 1, 1), (13_616, 2, 2, 0), (30_000, 3, 3, 0), (40_000, 4, 4, 1)]
    events = read_nmnist(write(tmp_path, nmnist_bytes(rows)))
    assert columns(events) == [rows[1], rows[0], rows[2], rows[3]] and events.reordered == 1
    # Events of the same time keep the order of the file.
    many = [(20_000, i % 34, i % 2, 0) for i in range(1000)]
    assert columns(read_nmnist(write(tmp_path, nmnist_bytes([*many, rows[1]])))) == [rows[1], *many]
    rows[1] = (30_000 - files.MAX_BACKWARD - 1, 2, 2, 0)
    with pytest.raises(ValueError, match=r"file: at event 1 time runs back by 20001 us"):
        read_nmnist(write(tmp_path, nmnist_bytes(rows)))


ROW = (10, 5, 9, 1, 1)


@pytest.mark.parametrize(
    ("read", "data", "message"),
    [
        (read_nmnist, b"", "no events"),
        (read_nmnist, nmnist_bytes([(1, 2, 3, 0)])[:-1], "truncated: 4 bytes are not a multiple of 5"),
        (read_nmnist, nmnist_bytes([(1, 2, 3, 0), (2, 34, 3, 0)]), "event 1 has x = 34, outside 0..33"),
        (read_nmnist, nmnist_bytes([(1, 2, 34, 0)]), "event 0 has y = 34, outside 0..33"),
        (read_aedat, b"", "not an AEDAT 2.0, 3.1 or 4.0 file, it begins with b''"),
        (read_aedat, b"RIFF" + bytes(20), r"not an AEDAT 2.0, 3.1 or 4.0 file, it begins with b'RIFF"),
        (read_aedat, aedat2_bytes([]), "no events"),
        (read_aedat, b"#!AER-DAT2.0\r\n# cut in the head", "no events"),
        (read_aedat, aedat2_bytes([(1, 2, 3, 0)])[:-3], "truncated: 5 bytes are not a multiple of 8"),
        (read_aedat, aedat2_bytes([(1, 2, 256, 0)]), "event 0 has address 0x10004, not one of a DVS128"),
        (read_aedat, AEDAT3[:-16], "the AEDAT 3.1 header has no end"),
        (read_aedat, AEDAT3, "no events"),
        (read_aedat, AEDAT3 + aedat3_packet([(10, 5, 9, 1, 0)]), "no events"),
        (read_aedat, AEDAT3 + aedat3_packet([ROW])[:20], "truncated: 20 bytes for a packet header of 28"),
        (read_aedat, AEDAT3 + aedat3_packet([ROW])[:-1], "truncated: 7 bytes for a packet of 8"),
        (read_aedat, AEDAT3 + aedat3_packet([ROW], kind=-1), f"damaged packet header at byte {len(AEDAT3)}"),
        (
            read_aedat,
            AEDAT3 + struct.pack("<2h6i", 1, 0, 9, 4, 0, 1, 1, 1),
            f"damaged packet header at byte {len(AEDAT3)}",
        ),
        (read_aedat, AEDAT3 + aedat3_packet([(10, 128, 9, 1, 1)]), "event 0 has x = 128, outside 0..127"),
        (read_gesture_npy, b"", "not a NumPy file"),
        (read_gesture_npy, b"1 2 3 4", "not a NumPy file"),
    ],
)
def test_bad_files_are_named(tmp_path, read, data, message):
    path = write(tmp_path, data)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: {message}"):
        read(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((3, 5)), r"expected finite \[N, 4\] with whole x, y, p, got float64 \(3, 5\)"),
        (np.array([[1, 2, 0, np.nan]]), r"expected finite \[N, 4\]"),
        (np.array([[1.5, 2, 0, 0]]), r"expected finite \[N, 4\] with whole x, y, p"),
        (np.array([[1, 2, 3, 0.0]]), "event 0 has p = 3, outside 0..1"),
        (np.zeros((0, 4)), "no events"),
    ],
)
def test_bad_gesture_npy(tmp_path, rows, message):
    np.save(tmp_path / "0.npy", rows)
    with pytest.raises(ValueError, match=f"0.npy: {message}"):
        read_gesture_npy(tmp_path / "0.npy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros(4, int)}, "t, x, y, p differ in length: 5, 4, 5, 5"),
        ({"t": np.array([1, 2, 1, 4, 5])}, "the time of event 2 runs backwards"),
        ({"p": np.array([0, -1, 0, 0, 0])}, "event 1 has p = -1, outside 0..1"),
    ],
)
def test_wrong_events(change, message):
    arrays = {name: getattr(GOOD, name) for name in "txyp"} | change
    with pytest.raises(ValueError, match=message):
        Events(**arrays, height=3, width=4)
