import itertools

import numpy as np
import pytest

from sltt_jax.data.events.cameras import (
    CIFAR10_CLASSES,
    load_cifar10_dvs,
    load_dvs_gesture,
    load_nmnist,
    paper_image,
)
from tests.common.event_files import AEDAT3, aedat2_bytes, aedat3_packet, aedat4_bytes, nmnist_bytes


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture
def nmnist(tmp_path):
    """Two training recordings and a test recording of every digit d, of d + 1 events at pixel (d, 2 d)."""
    for split, names in (("Train", ("00002", "00010")), ("Test", ("00001",))):
        for digit, name in itertools.product(range(10), names):
            rows = [(100 * i, digit, 2 * digit, 1) for i in range(digit + 1)]
            write(tmp_path / split / str(digit) / f"{name}.bin", nmnist_bytes(rows))
    return tmp_path


def test_nmnist(nmnist):
    data = load_nmnist(nmnist, steps=1)
    assert data.train_x.shape == (20, 1, 34, 34, 2) and data.test_x.shape == (10, 1, 34, 34, 2)
    assert data.train_x.dtype == np.uint8 and data.train_y.dtype == np.int32 and data.classes == 10
    np.testing.assert_array_equal(data.train_y, np.repeat(np.arange(10), 2))
    np.testing.assert_array_equal(data.test_y, np.arange(10))
    for x, d in zip(data.test_x, range(10), strict=True):
        assert x[0, 2 * d, d, 1] == d + 1 == x.sum()
    smaller = load_nmnist(nmnist, steps=2, split_by="time", size=17)
    assert smaller.test_x.shape == (10, 2, 17, 17, 2) and smaller.test_x.sum() == 55


def test_cache(nmnist, monkeypatch):
    cache = nmnist / "cache"
    first = load_nmnist(nmnist, cache=cache)
    with monkeypatch.context() as without_files:
        without_files.setattr("sltt_jax.data.events.cameras.read_nmnist", None)
        again = load_nmnist(nmnist, cache=cache)
        np.testing.assert_array_equal(again.train_x, first.train_x)
        np.testing.assert_array_equal(again.test_y, first.test_y)
    for options in ({"steps": 3}, {"split_by": "time"}, {"size": 17}):
        files = len(list(cache.iterdir()))
        load_nmnist(nmnist, cache=cache, **options)
        assert len(list(cache.iterdir())) == files + 1
    write(nmnist / "Train/3/00002.bin", nmnist_bytes([(1, 0, 0, 0)] * 9))
    assert load_nmnist(nmnist, cache=cache).train_x[6, ..., 0].sum() == 9


def test_sorted_events_are_reported(nmnist):
    write(nmnist / "Train/3/00002.bin", nmnist_bytes([(500, 0, 0, 0), (100, 1, 1, 1)]))
    with pytest.warns(UserWarning, match=r"time runs back in 1 of 20 recordings, first in .*3/00002.bin"):
        load_nmnist(nmnist)


@pytest.mark.parametrize(
    ("name", "data", "error", "message"),
    [
        ("Train/10/1.bin", nmnist_bytes([(1, 2, 3, 0)]), ValueError, "Train/10: not one of the classes 0, 1"),
        ("Test/4/00001.bin", b"1234", ValueError, "Test/4/00001.bin: .*truncated: 4 bytes"),
        ("Train/9/00010.bin", nmnist_bytes([(1, 34, 0, 0)]), ValueError, "9/00010.bin: .*event 0 has x = 34"),
        (
            "Train/5/00010.bin",
            nmnist_bytes([(1, 3, 0, 0)] * 65_536),
            ValueError,
            "5/00010.bin: a pixel counts",
        ),
    ],
)
def test_bad_nmnist(nmnist, name, data, error, message):
    write(nmnist / name, data)
    with pytest.raises(error, match=message):
        load_nmnist(nmnist, steps=1)


def test_missing_folders(nmnist):
    with pytest.raises(FileNotFoundError, match=r"nowhere/Train: no such folder; it should hold 0, ..., 9"):
        load_nmnist(nmnist / "nowhere")
    for path in (nmnist / "Test/6").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"Test/6: no \*.bin files"):
        load_nmnist(nmnist)
    with pytest.raises(FileNotFoundError, match=r"neither trials_to_train.txt nor ibmGestureTrain"):
        load_dvs_gesture(nmnist)


@pytest.fixture
def cifar10_dvs(tmp_path):
    """Of every class recordings 2, 10, 899, 900 and 999; recording i has one event, at time i."""
    for c, i in itertools.product(CIFAR10_CLASSES, (2, 10, 899, 900, 999)):
        write(tmp_path / c / f"cifar10_{c}_{i}.aedat", aedat2_bytes([(i, 127, 0, 0)] * (i // 9 + 1)))
    return tmp_path


def test_cifar10_dvs_split_is_by_number(cifar10_dvs):
    data = load_cifar10_dvs(cifar10_dvs, steps=1)
    assert data.train_x.shape == (30, 1, 48, 48, 2) and data.test_x.shape == (20, 1, 48, 48, 2)
    np.testing.assert_array_equal(data.train_y, np.repeat(np.arange(10), 3))
    # Stored at x = 127, that is the left edge; 9/64 of the new pixel's area stays in it.
    counts = [1, 2, 100, 101, 112]
    assert data.train_x[:3, 0, 0, 0, 1].tolist() == counts[:3] and data.train_x[:3].sum() == sum(counts[:3])
    assert data.test_x[-2:, 0, 0, 0, 1].tolist() == counts[3:]


def test_cifar10_dvs_aedat4(cifar10_dvs):
    pytest.importorskip("aedat", reason="AEDAT 4.0 is read by the optional package aedat")
    (cifar10_dvs / "cat/cifar10_cat_2.aedat").unlink()
    write(cifar10_dvs / "cat/cifar10_cat_2.aedat4", aedat4_bytes([(5, 6, 9, True)]))
    image = load_cifar10_dvs(cifar10_dvs, steps=1, size=128).train_x[9, 0]
    assert image[9, 6, 1] == 1 == image.sum()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cat/cifar10_dog_7.aedat", "cifar10_dog_7.aedat: not named cifar10_<its folder>_<0..999>.aedat"),
        ("cat/cifar10_cat_1000.aedat", "cifar10_cat_1000.aedat: not named"),
        ("cat/cifar10_cat_2.aedat4", "cifar10_cat_2.aedat4: the same recording as cifar10_cat_2.aedat"),
        ("lion/cifar10_lion_2.aedat", "lion: not one of the classes airplane"),
    ],
)
def test_cifar10_dvs_misnamed(cifar10_dvs, name, message):
    write(cifar10_dvs / name, aedat2_bytes([(1, 2, 3, 0)]))
    with pytest.raises(ValueError, match=message):
        load_cifar10_dvs(cifar10_dvs)


def test_cifar10_dvs_wrong_option_and_missing_split(cifar10_dvs):
    with pytest.raises(ValueError, match='preprocessing must be "counts" or "paper", got \'papier\''):
        load_cifar10_dvs(cifar10_dvs, preprocessing="papier")
    for path in cifar10_dvs.glob("*/*_9??.aedat"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"needs recordings 0..899 and 900..999"):
        load_cifar10_dvs(cifar10_dvs)


def test_paper_image():
    pytest.importorskip("PIL", reason="the paper's preprocessing resizes with Pillow")
    counts = np.zeros((3, 128, 128, 2), np.uint16)
    counts[0] = [1, 2]
    counts[1] = [3, 0]
    counts[2] = [256, 257]
    image = paper_image(counts, 48)
    assert image.shape == (3, 48, 48, 2) and image.dtype == np.uint8
    # Even areas: 1 -> 255, 2 -> 254, 257 wraps to 255; OFF is lost where there is no ON; 256 wraps to 0.
    assert (image[0] == [255, 254]).all() and (image[1] == 0).all() and (image[2] == [0, 255]).all()
    # A single pixel spreads over the triangle filter: a quarter of opacity, but full brightness.
    counts[:] = 0
    counts[0, 64, 64] = [1, 1]
    image = paper_image(counts, 48)
    assert image[0, 24, 24, 0] >= 250 and 0 < image[0, 24, 24, 1] < 64 and image[0].any(-1).sum() <= 9


def test_cifar10_dvs_paper(cifar10_dvs):
    pytest.importorskip("PIL", reason="the paper's preprocessing resizes with Pillow")
    clean = load_cifar10_dvs(cifar10_dvs, steps=1, size=128)
    load_cifar10_dvs(cifar10_dvs, steps=1, cache=cifar10_dvs / "cache")
    paper = load_cifar10_dvs(cifar10_dvs, steps=1, preprocessing="paper", cache=cifar10_dvs / "cache")
    assert paper.train_x.shape == (30, 1, 48, 48, 2) and paper.train_x.dtype == np.uint8
    np.testing.assert_array_equal(paper.train_x, [paper_image(x, 48) for x in clean.train_x])
    assert paper.train_x[0, 0, 0, 0, 1] > 0
    # OFF events alone, as this file has, leave nothing.
    write(cifar10_dvs / "cat/cifar10_cat_2.aedat", aedat2_bytes([(1, 127, 0, 1)] * 50))
    assert load_cifar10_dvs(cifar10_dvs, steps=1).train_x[9].sum() == 50
    assert not load_cifar10_dvs(cifar10_dvs, steps=1, preprocessing="paper").train_x[9].any()


@pytest.fixture
def gesture(tmp_path):
    """Two trials, one event every 10 us at x = y = t / 10."""
    rows = [(10 * i, i, i, i % 2, 1) for i in range(100)]
    for trial in ("user01_led", "user02_lab"):
        write(tmp_path / f"{trial}.aedat", AEDAT3 + aedat3_packet(rows[:40]) + aedat3_packet(rows[40:]))
    write(tmp_path / "trials_to_train.txt", b"user01_led.aedat\n\n")
    write(tmp_path / "trials_to_test.txt", b"user02_lab.aedat\n")
    head = b"class,startTime_usec,endTime_usec\n"
    # The second gesture begins before the first ends, as in some of the published labels.
    write(tmp_path / "user01_led_labels.csv", head + b"1,100,300\n11,250,400\n")
    write(tmp_path / "user02_lab_labels.csv", head + b"5,0,50\n")
    return tmp_path


def test_dvs_gesture(gesture):
    data = load_dvs_gesture(gesture, steps=2)
    assert data.train_x.shape == (2, 2, 128, 128, 2) and data.classes == 11
    assert data.train_y.tolist() == [0, 10] and data.test_y.tolist() == [4]
    diagonal = lambda x: np.flatnonzero(np.einsum("iic->i", x.astype(int))).tolist()
    assert [diagonal(x) for x in data.train_x[0]] == [list(range(10, 20)), list(range(20, 30))]
    assert [diagonal(x) for x in data.train_x[1]] == [list(range(25, 32)), list(range(32, 40))]
    assert data.test_x.sum() == 5
    cached = load_dvs_gesture(gesture, steps=2, cache=gesture / "cache")
    np.testing.assert_array_equal(cached.train_x, data.train_x)
    # The labels' files are part of the cache's key.
    write(gesture / "user02_lab_labels.csv", b"class,startTime_usec,endTime_usec\n6,0,90\n")
    again = load_dvs_gesture(gesture, steps=2, cache=gesture / "cache")
    assert again.test_y.tolist() == [5] and again.test_x.sum() == 9


@pytest.mark.parametrize(
    ("name", "data", "error", "message"),
    [
        ("user01_led_labels.csv", b"", ValueError, "labels.csv: not rows under class,"),
        (
            "user01_led_labels.csv",
            b"1,100,300\n2,300,400\n",
            ValueError,
            "labels.csv: not rows under class,",
        ),
        (
            "user01_led_labels.csv",
            b"class,s,e\n12,100,300\n",
            ValueError,
            "row 1: .*class 12 is outside 1..11",
        ),
        ("user01_led_labels.csv", b"class,s,e\n0,100,300\n", ValueError, "row 1: .*class 0 is outside 1..11"),
        (
            "user01_led_labels.csv",
            b"class,s,e\n1,100\n",
            ValueError,
            "labels.csv, row 1: .*not enough values",
        ),
        (
            "user01_led_labels.csv",
            b"class,s,e\n1,0,9\n2,5000,6000\n",
            ValueError,
            "row 2: .*no events from 5000",
        ),
        ("user02_lab.aedat", b"", ValueError, "user02_lab.aedat: not an AEDAT"),
        ("trials_to_test.txt", b"\n", ValueError, "trials_to_test.txt: .*it is empty"),
        ("trials_to_test.txt", b"user03_led.aedat", FileNotFoundError, "user03_led.aedat"),
        (
            "trials_to_test.txt",
            b"../user03.aedat",
            ValueError,
            "trials_to_test.txt: .*'../user03.aedat' is not the name of one",
        ),
        ("trials_to_test.txt", b"a\0.aedat", ValueError, "trials_to_test.txt: .*is not the name of one"),
        ("trials_to_test.txt", b"\xff\xfe", ValueError, "trials_to_test.txt: not a list .*decode"),
        ("user01_led_labels.csv", b"class,\xff", ValueError, "labels.csv: not rows .*decode"),
    ],
)
def test_bad_dvs_gesture(gesture, name, data, error, message):
    write(gesture / name, data)
    with pytest.raises(error, match=message):
        load_dvs_gesture(gesture)


def test_cut_dvs_gesture(tmp_path):
    for name, x in (("Train/user01_led/10", 3), ("Train/user01_led/9", 4), ("Test/user30_lab/0", 5)):
        path = tmp_path / f"ibmGesture{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.array([[x, 7, 1, 0.5], [x, 7, 1, 0.75]]))
    data = load_dvs_gesture(tmp_path, steps=1)
    found = {
        (y, x) for x, y in zip(np.argwhere(data.train_x)[:, 3].tolist(), data.train_y.tolist(), strict=True)
    }
    assert found == {(10, 3), (9, 4)} and data.test_y.tolist() == [0] and data.test_x[0, 0, 7, 5, 1] == 2
    np.save(tmp_path / "ibmGestureTest/user30_lab/11.npy", np.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"11.npy: the name is no class 0..10"):
        load_dvs_gesture(tmp_path)
