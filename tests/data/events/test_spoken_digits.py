import struct

import numpy as np
import pytest

from sltt_jax.data.events.spoken_digits import RANGE, filter_bank, level_crossings, load_fsdd, read_wav


def wav_bytes(samples, *, channels=1, rate=8000, bits=16):
    data = struct.pack(f"<{len(samples)}h", *samples)
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits)
    chunks = b"fmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def tone(hertz, seconds=0.3):
    t = np.arange(int(8000 * seconds)) / 8000
    return (10_000 * np.sin(2 * np.pi * hertz * t)).astype(int)


def test_read_wav(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes([0, 16384, -32768]))
    assert read_wav(path).tolist() == [0, 0.5, -1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a WAV file of one channel, 16 bits and 8000 Hz: EOFError"),
        (b"OggS" + bytes(40), "not a WAV file .*: file does not start with RIFF id"),
        # Claims 4 GB, and that its data lie before its beginning.
        (
            wav_bytes([1, 2]).replace(b"data\4\0\0\0", b"data\xfe\xff\xff\xff"),
            "truncated: 4 bytes for 2147483647",
        ),
        (wav_bytes([1, 2]).replace(b"fmt \x10", b"fmt \xff"), "not a WAV file"),
        (wav_bytes([1, 2, 3])[:-2], "truncated: 4 bytes for 3 samples of 2"),
        (wav_bytes([]), "truncated: 0 bytes for 0 samples"),
        (
            wav_bytes([1, 2], channels=2),
            r"\(channels, bits, rate\) are \(2, 16, 8000\), expected \(1, 16, 8000\)",
        ),
        (wav_bytes([1, 2], rate=16000), r"are \(1, 16, 16000\)"),
        (wav_bytes([1, 2], bits=8), r"are \(1, 8, 8000\)"),
    ],
)
def test_bad_wav(tmp_path, data, message):
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"a.wav: .*{message}"):
        read_wav(path)


def test_filter_bank_finds_tones():
    quiet = filter_bank(tone(500) / 2**15, 32)
    assert quiet.shape == (28, 32) and quiet.min() == 0 and quiet.max() == RANGE
    loudest = [filter_bank(tone(f) / 2**15, 32)[5].argmax() for f in (150, 500, 1000, 2000, 3500)]
    assert loudest == sorted(set(loudest))
    # Loudness does not matter, only what lies how far below the loudest.
    np.testing.assert_allclose(filter_bank(tone(500) / 2**10, 32), quiet, atol=1e-9)
    # A recording shorter than a window is one window.
    assert filter_bank(np.ones(10), 32).shape == (1, 32)
    with pytest.raises(ValueError, match="200 bands are too many"):
        filter_bank(np.ones(300), 200)
    with pytest.raises(ValueError, match="bands must be at least 1, got 0"):
        filter_bank(np.ones(300), 0)


def test_level_crossings_by_hand():
    signal = np.array([[5.0, 0], [3.9, 8], [4.1, -1], [-4.1, -1]])
    np.testing.assert_array_equal(level_crossings(signal, 2), [[2, 0], [0, 4], [0, -4], [-4, 0]])
    # What was sent adds up to the signal, to less than a level.
    walk = np.cumsum(np.random.default_rng(0).normal(size=(200, 3)), axis=0)
    assert np.abs(0.5 * np.cumsum(level_crossings(walk, 0.5), axis=0) - walk).max() < 0.5
    with pytest.raises(ValueError, match="level must be positive, got 0"):
        level_crossings(signal, 0)


@pytest.fixture
def fsdd(tmp_path):
    (tmp_path / "recordings").mkdir()
    for digit in range(10):
        for index in (0, 4, 5, 49):
            sound = np.concatenate([tone(300 + 300 * digit), np.zeros(1600, int)])
            path = tmp_path / "recordings" / f"{digit}_jack_{index}.wav"
            path.write_bytes(wav_bytes(sound))
    return tmp_path


def test_fsdd(fsdd):
    data = load_fsdd(fsdd, steps=5, bands=16, cache=fsdd / "cache")
    assert data.train_x.shape == (20, 5, 32) and data.test_x.shape == (20, 5, 32)
    assert data.train_x.dtype == np.uint8 and data.classes == 10
    np.testing.assert_array_equal(np.bincount(data.train_y), 2)
    np.testing.assert_array_equal(np.bincount(data.test_y), 2)
    falls, rises = np.moveaxis(data.train_x.reshape(20, 5, 16, 2).astype(int), 3, 0)
    # A tone, then silence: every band rises at the beginning and falls back at the end.
    np.testing.assert_array_equal(falls.sum(1), rises.sum(1))
    assert rises[:, 0].sum() > rises[:, -1].sum() and falls[:, -1].sum() > falls[:, 0].sum()
    pitch = rises.sum(1).argmax(-1)[::2]
    assert (np.diff(pitch) >= 0).all() and pitch[0] < pitch[-1]
    again = load_fsdd(fsdd, steps=5, bands=16, cache=fsdd / "cache")
    np.testing.assert_array_equal(again.test_x, data.test_x)


def test_bad_fsdd(fsdd):
    with pytest.raises(FileNotFoundError, match=r"nowhere/recordings: needs .wav files of index 0..4"):
        load_fsdd(fsdd / "nowhere")
    path = fsdd / "recordings" / "3_jack_6.wav"
    path.write_bytes(wav_bytes([0] * 4000))
    with pytest.raises(ValueError, match=r"3_jack_6.wav: .*no events"):
        load_fsdd(fsdd)
    path.rename(fsdd / "recordings" / "three_jack_6.wav")
    with pytest.raises(ValueError, match=r"three_jack_6.wav: not named <digit>_<speaker>_<index>.wav"):
        load_fsdd(fsdd)
