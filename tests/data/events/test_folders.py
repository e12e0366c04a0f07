"""Recordings in class folders, of every format, as frames."""

import re
import wave

import numpy as np
import pytest

from sltt_jax.damage import DamagedFile
from sltt_jax.data.events.binning import frames
from sltt_jax.data.events.folders import FORMATS, load_event_folder
from tests.common.event_files import AEDAT3, aedat2_bytes, aedat3_packet, aedat4_bytes, nmnist_bytes


def rows(i):
    return [(10 * t, (t + i) % 30, (2 * t) % 30, t % 2) for t in range(20)]


def write(path, i):
    """A recording of the format of its suffix; `.aedat` are of two versions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, np.array(rows(i), float)[:, [1, 2, 3, 0]])
    elif path.suffix == ".wav":
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            t = np.arange(4000)
            file.writeframes((10000 * np.sin(t * (0.2 + 0.3 * i)) * (t > 1000)).astype("<i2").tobytes())
    elif path.suffix == ".aedat4":
        path.write_bytes(aedat4_bytes([(t, x, y, bool(p)) for t, x, y, p in rows(i)]))
    elif path.suffix == ".bin":
        path.write_bytes(nmnist_bytes(rows(i)))
    else:
        packet = aedat3_packet([(*row, 1) for row in rows(i)])
        path.write_bytes(aedat2_bytes(rows(i)) if i % 2 else AEDAT3 + packet)
    return path


def two_classes(root, suffix):
    for y, name in enumerate("ab"):
        for i in range(2):
            write(root / name / f"{i}{suffix}", 2 * y + i)
    return root


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format(tmp_path, suffix):
    if suffix == ".aedat4":
        pytest.importorskip("aedat", reason="AEDAT 4.0 is read by the optional package aedat")
    folder = two_classes(tmp_path, suffix)
    found, classes = load_event_folder(folder, steps=3)
    assert classes == ("a", "b") and found.train_x.dtype == np.uint8
    shapes = {".bin": (3, 34, 34, 2), ".wav": (3, 64)}
    assert found.train_x.shape == (2, *shapes.get(suffix, (3, 128, 128, 2)))
    x = np.r_[found.train_x, found.test_x]
    read, how = FORMATS[suffix].read, "time" if suffix == ".wav" else "number"
    expected = [frames(read(path), 3, split_by=how) for path in sorted(folder.glob("*/*"))]
    for y, frame in enumerate(expected):
        same = [i for i in range(4) if (x[i] == frame.reshape(x[i].shape)).all()]
        assert len(same) == 1 and np.r_[found.train_y, found.test_y][same[0]] == y // 2
    assert x.any((1, *range(2, x.ndim))).all()


def test_frames_are_made_smaller(tmp_path):
    found, _ = load_event_folder(two_classes(tmp_path, ".bin"), steps=2, size=17)
    assert found.train_x.shape == (2, 2, 17, 17, 2) and found.train_x.sum() == 2 * 20
    with pytest.raises(ValueError, match=r"\.bin: size must be in 1\.\.34"):
        load_event_folder(tmp_path, steps=2, size=40)


def test_what_is_refused(tmp_path):
    folder = two_classes(tmp_path / "one", ".npy")
    damaged = folder / "b" / "2.npy"
    damaged.write_bytes(b"no numbers")
    with pytest.raises(DamagedFile, match=f"^{re.escape(str(damaged))}: not a NumPy file of events"):
        load_event_folder(folder, steps=2)
    damaged.unlink()
    write(folder / "b" / "2.bin", 0)
    several = r"several sensors: .* is of \d+ x \d+, .* is of \d+ x \d+ pixels"
    with pytest.raises(ValueError, match=several):
        load_event_folder(folder, steps=2)
    with pytest.raises(ValueError, match="size is for recordings of cameras, got 8 for sound"):
        load_event_folder(two_classes(tmp_path / "sound", ".wav"), steps=2, size=8)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        load_event_folder(two_classes(tmp_path / "other", ".bin"), steps=0)
