"""QTDB's files: what is read of them, and what is refused."""

import os

import numpy as np
import pytest
from scipy.io import savemat

from sltt_jax.data.events.qtdb import load_qtdb


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name, n in (("train", 3), ("test", 2)):
        y = np.eye(6, dtype=np.uint8)[rng.integers(0, 6, (n, 10))]
        y[:, 4] = 0  # no label
        x = rng.integers(-1, 2, (n, 10, 4)).astype(np.int16)
        savemat(tmp_path / f"QTDB_{name}.mat", {"x": x, "y": y, "max_i": np.full((n, 1), 10, np.uint16)})
    return tmp_path


def write(folder, **arrays):
    savemat(folder / "QTDB_test.mat", {"x": np.zeros((2, 10, 4)), "y": np.zeros((2, 10, 6)), **arrays})


def test_qtdb(folder):
    data = load_qtdb(folder, steps=7)
    assert data.train_x.shape == (3, 7, 4) and data.train_x.dtype == np.float32 and data.classes == 6
    assert {*np.unique(data.train_x)} == {-1, 0, 1}
    assert data.test_y["weight"].tolist() == [[1, 1, 1, 1, 0, 1, 1]] * 2
    from scipy.io import loadmat

    one_hot = loadmat(folder / "QTDB_test.mat")["y"][:, :7]
    labelled = data.test_y["weight"] > 0
    np.testing.assert_array_equal(np.eye(6)[data.test_y["y"]][labelled], one_hot[labelled])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 10, 3))}, r"x \(2, 10, 3\) and y"),
        ({"y": np.zeros((2, 9, 6))}, r"x \(2, 10, 4\) and y \(2, 9, 6\)"),
        ({"x": np.full((2, 10, 4), 2)}, "entries of x other than"),
        ({"y": np.ones((2, 10, 6))}, "one-hot"),
        ({"y": np.zeros((2, 10, 6))}, "some of them above 0"),
    ],
)
def test_bad_qtdb(folder, arrays, message):
    write(folder, **arrays)
    with pytest.raises(ValueError, match=message):
        load_qtdb(folder, steps=10)


def test_files_that_are_damaged_or_too_short(folder):
    with pytest.raises(ValueError, match=r"QTDB_train.mat has recordings of 10 steps.* got 11"):
        load_qtdb(folder, steps=11)
    path = folder / "QTDB_test.mat"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"QTDB_test.mat: not a MATLAB file of x"):
        load_qtdb(folder, steps=10)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"QTDB_test\.mat"):
        load_qtdb(folder, steps=10)
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"QTDB_test\.mat: not a regular file"):
        load_qtdb(folder, steps=10)
