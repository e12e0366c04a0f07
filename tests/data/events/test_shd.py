import numpy as np
import pytest

from sltt_jax.damage import DamagedFile
from sltt_jax.data.events.shd import load_shd


def write_shd(path, recordings, labels):
    h5py = pytest.importorskip("h5py", reason="SHD's files are read by the optional package h5py")
    with h5py.File(path, "w") as file:
        for name, kind, i in (("times", np.float16, 0), ("units", np.uint16, 1)):
            rows = file.create_dataset(f"spikes/{name}", (len(recordings),), h5py.vlen_dtype(kind))
            for j, recording in enumerate(recordings):
                rows[j] = np.array(recording[i], kind)
        file["labels"] = np.array(labels)


@pytest.fixture
def shd(tmp_path):
    write_shd(tmp_path / "shd_train.h5", [([0, 0.5, 0.5, 1.375], [0, 4, 5, 699]), ([1.0], [350])], [19, 3])
    write_shd(tmp_path / "shd_test.h5", [([0.25] * 300, [7] * 300)], [0])
    return tmp_path


def test_shd(shd):
    data = load_shd(shd, steps=14)
    assert data.train_x.shape == (2, 14, 700) and data.classes == 20
    assert np.argwhere(data.train_x).tolist() == [[0, 0, 0], [0, 5, 4], [0, 5, 5], [0, 13, 699], [1, 10, 350]]
    assert data.train_y.tolist() == [19, 3] and data.train_y.dtype == np.int32
    # One recording needs uint16: both splits have it.
    assert data.train_x.dtype == data.test_x.dtype == np.uint16 and data.test_x[0, 2, 7] == 300
    summed = load_shd(shd, steps=14, channels=140, cache=shd / "cache")
    assert summed.train_x[0, 5, :2].tolist() == [1, 1] and summed.train_x.shape == (2, 14, 140)
    again = load_shd(shd, steps=14, channels=140, cache=shd / "cache")
    np.testing.assert_array_equal(again.train_x, summed.train_x)


@pytest.mark.parametrize(
    ("recordings", "labels", "message"),
    [
        ([([0.1], [0])], [20], r"label 20 of recording 0 is outside 0..19"),
        ([([0.1], [0])], [2**32], r"label 4294967296 of recording 0 is outside 0..19"),
        ([([0.1], [0])], [-1], r"label -1 of recording 0 is outside 0..19"),
        ([([0.1], [0])], [1.7], r"labels must be integers, got float64"),
        ([([0.1], [0]), ([0.1], [700])], [1, 2], r"recording 1: .*units from 700 to 700, expected 0..699"),
        ([([1.5], [0])], [1], r"recording 0: .*spikes from 1.5 to 1.5 s, expected 0 <= t < 1.4"),
        ([([np.nan], [0])], [1], r"recording 0: .*spikes from nan"),
        ([([], [])], [1], r"recording 0: .*0 times and 0 units"),
        ([([0.1, 0.2], [1])], [1], r"recording 0: .*2 times and 1 units"),
        ([([0.1], [1])], [1, 2], r"1 times, 1 units and 2 labels"),
    ],
)
def test_bad_shd(shd, recordings, labels, message):
    write_shd(shd / "shd_test.h5", recordings, labels)
    with pytest.raises(ValueError, match=f"shd_test.h5.*{message}"):
        load_shd(shd)


def elsewhere(file, h5py, folder):
    file["labels"] = h5py.ExternalLink(str(folder / "shd_train.h5"), "/labels")


def raw(file, h5py, folder):
    file.create_dataset("labels", (1,), np.uint8, external=[(str(folder / "shd_train.h5"), 0, 1)])


def group(file, h5py, folder):
    file.create_group("labels")


def huge(file, h5py, folder):
    file.create_dataset("labels", (10**10,), np.uint8, chunks=(1,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (elsewhere, "labels does not lie in the file, it is a link"),
        (raw, "the numbers of labels do not lie in the file"),
        (group, "labels is not a list"),
        (huge, "labels has 10000000000 entries, in a file of [0-9]+ bytes"),
    ],
)
def test_nothing_but_the_file_is_read(shd, change, message):
    h5py = pytest.importorskip("h5py", reason="SHD's files are read by the optional package h5py")
    with h5py.File(shd / "shd_test.h5", "r+") as file:
        del file["labels"]
        change(file, h5py, shd)
    with pytest.raises(DamagedFile, match=f"shd_test.h5: not a file of spikes.*: {message}"):
        load_shd(shd)


def test_units_and_times_must_be_numbers_of_their_kind(shd):
    h5py = pytest.importorskip("h5py", reason="SHD's files are read by the optional package h5py")
    with h5py.File(shd / "shd_test.h5", "r+") as file:
        del file["spikes/units"]
        file.create_dataset("spikes/units", (1,), h5py.vlen_dtype(np.float32))[0] = np.array(
            [3.7], np.float32
        )
    with pytest.raises(DamagedFile, match=r"shd_test.h5: .*spikes/units must be lists of 'iu'"):
        load_shd(shd)


def test_broken_shd_file(shd):
    whole = (shd / "shd_test.h5").read_bytes()
    for data in (b"", whole[:-100], b"no HDF5 here"):
        (shd / "shd_test.h5").write_bytes(data)
        with pytest.raises(
            ValueError, match=r"shd_test.h5: not a file of spikes/times, spikes/units and labels"
        ):
            load_shd(shd)
    (shd / "shd_test.h5").unlink()
    with pytest.raises(FileNotFoundError, match=r"shd_test.h5"):
        load_shd(shd)
    for options in ({"steps": 0}, {"channels": 300}, {"duration": 0.0}):
        with pytest.raises(ValueError, match="steps must be at least 1, channels a divisor of 700"):
            load_shd(shd, **options)
