import os
import re
import struct
import sys

import numpy as np
import pytest

from sltt_jax.damage import DamagedFile
from sltt_jax.data.events import files, foreign
from sltt_jax.data.events.files import read_aedat, read_gesture_npy, read_nmnist
from sltt_jax.data.events.spoken_digits import read_wav
from tests.common.event_files import AEDAT3, aedat2_bytes, aedat3_packet, aedat4_bytes, nmnist_bytes


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
    with pytest.raises(ModuleNotFoundError, match=r"file needs the package aedat: pip install aedat"):
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
    with pytest.raises(ValueError, match=r"file: .*at event 1 time runs back by 20001 us"):
        read_nmnist(write(tmp_path, nmnist_bytes(rows)))


ROW = (10, 5, 9, 1, 1)


@pytest.mark.parametrize(
    ("read", "data", "message"),
    [
        (read_nmnist, b"", "no events"),
        (read_nmnist, nmnist_bytes([(1, 2, 3, 0)])[:-1], "truncated: 4 bytes are not a multiple of 5"),
        (read_nmnist, nmnist_bytes([(1, 2, 3, 0), (2, 34, 3, 0)]), "event 1 has x = 34, outside 0..33"),
        (read_nmnist, nmnist_bytes([(1, 2, 34, 0)]), "event 0 has y = 34, outside 0..33"),
        (read_aedat, b"", "not an AEDAT 2.0, 3.1 or 4.0 recording: it begins with b''"),
        (read_aedat, b"RIFF" + bytes(20), r"not an AEDAT 2.0, 3.1 or 4.0 recording: it begins with b'RIFF"),
        (read_aedat, aedat2_bytes([]), "no events"),
        (read_aedat, b"#!AER-DAT2.0\r\n# cut in the head", "no events"),
        (read_aedat, aedat2_bytes([(1, 2, 3, 0)])[:-3], "truncated: 5 bytes are not a multiple of 8"),
        (read_aedat, aedat2_bytes([(1, 2, 256, 0)]), "event 0 has address 0x10004, not one of a DVS128"),
        (read_aedat, AEDAT3[:-16], "the header has no end"),
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
    with pytest.raises(DamagedFile, match=f"{re.escape(str(path))}: .*{message}"):
        read(path)


PACKAGES = {
    "panics": "class Panic(BaseException): pass\nraise Panic('in Rust')",
    "says more": (
        "import atexit, sys\n"
        "atexit.register(lambda: print('note: run with RUST_BACKTRACE=full', file=sys.stderr))\n"
        "class Panic(BaseException): pass\nraise Panic('in Rust')"
    ),
    "crashes": "import os\nos.abort()",
    "hangs": "while True: pass",
    "takes memory": "len(bytearray(3 * 10**9))",  # which there is, but not for a small file
}


@pytest.mark.parametrize(
    ("package", "message"),
    [
        ("panics", r"aedat\.Panic: in Rust"),
        ("says more", r"aedat\.Panic: in Rust$"),
        ("crashes", "aedat ended with status -6"),
        ("hangs", "aedat was stopped after 1 s for [0-9]+ bytes"),
        ("takes memory", "MemoryError"),
    ],
)
def test_a_package_that_does_not_come_back(tmp_path, monkeypatch, package, message):
    pytest.importorskip("aedat", reason="AEDAT 4.0 is read by the optional package aedat")
    write(tmp_path, PACKAGES[package].encode(), "aedat.py")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(foreign, "PATIENCE", 1.0 if package == "hangs" else 30.0)
    with pytest.raises(DamagedFile, match=f"file: not an AEDAT .* recording: {message}"):
        read_aedat(write(tmp_path, aedat4_bytes([(1000, 3, 5, 1)])))


def npy(header, data=bytes(32)):
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header.encode() + data


NPY = "{'descr': '<f8', 'fortran_order': False, 'shape': (1, 4)}\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(NPY.replace("(1, 4)", "(9**9, 4)")), "not a NumPy file"),
        (npy(NPY.replace("(1, 4)", "(999999999999, 4)")), r"header says float64 \(999999999999, 4\), but 32"),
        (npy(NPY.replace("(1, 4)", f"({10**30}, 4)")), "header says .* but 32 bytes follow"),
        (npy(NPY.replace("(1, 4)", "(-1, 4)")), r"header says float64 \(-1, 4\), but 32 bytes follow"),
        (npy(NPY, bytes(40)), "but 40 bytes follow"),
        (npy(NPY.replace("<f8", "|O")), "it holds object, expected real numbers"),
        (npy(NPY.replace("<f8", "<c16"), bytes(64)), "it holds complex128"),
        (npy(NPY.replace("'<f8'", "[('t', '<f8')]")), "it holds .*'t'"),
        (npy(NPY[:-3]), "not a NumPy file"),
        (npy("'" + NPY), "not a NumPy file"),
        (npy("(" * 5000), "not a NumPy file"),
        (b"\x93NUMPY\x02\0" + struct.pack("<I", 2**32 - 1), "not a NumPy file"),
        (b"PK\x03\x04" + bytes(40), "not a NumPy file"),
    ],
)
def test_npy_headers_are_not_believed(tmp_path, data, message):
    assert len(columns(read_gesture_npy(write(tmp_path, npy(NPY), "good.npy")))) == 1
    with pytest.raises(DamagedFile, match=f"file: .*{message}"):
        read_gesture_npy(write(tmp_path, data))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.array([[1, 2, 0, 0], [1, 2, 0, 9.3e15]]), r"event 1 has t = 9.3e\+18, beyond 2\^53"),
        (np.array([[1e300, 2, 0, 0]]), r"event 0 has x = 1e\+300, beyond 2\^53"),
        (np.array([[1, 2**64 - 1, 0, 0]], np.uint64), r"event 0 has y = 1.8\d+e\+19, beyond"),
        (np.array([["1", "2", "0", "0"]]), "it holds <U1, expected real numbers"),
        (np.zeros((3, 5)), r"expected numbers \[N, 4\], x, y, p and t, got float64 \(3, 5\)"),
        (np.array([[1, 2, 0, 0], [1, 2, 0, np.nan]]), "event 1 has t = nan"),
        (np.array([[1, 2, 0, 0], [1.5, 2, 0, 0]]), "event 1 has x = 1.5, no whole number"),
        (np.array([[1, 2, 3, 0.0]]), "event 0 has p = 3, outside 0..1"),
        (np.zeros((0, 4)), "no events"),
    ],
)
def test_bad_gesture_npy(tmp_path, rows, message):
    np.save(tmp_path / "0.npy", rows)
    with pytest.raises(ValueError, match=f"0.npy: .*{message}"):
        read_gesture_npy(tmp_path / "0.npy")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="only Unix has FIFOs in folders")
@pytest.mark.parametrize("read", [read_nmnist, read_aedat, read_gesture_npy, read_wav])
def test_a_fifo_is_refused_and_not_waited_for(tmp_path, read):
    os.mkfifo(path := tmp_path / "recording")
    with pytest.raises(DamagedFile, match=f"{path}: not a regular file"):
        read(path)
