import io
import os
import re
import resource
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest

from sltt_jax.data.cache import DAY, cached, remove_rests

CLASSES = 100
ARRAYS = {
    "train_x": np.arange(50_000, dtype=np.uint16).reshape(100, 500),
    "train_y": np.arange(100, dtype=np.int32),
    "test_x": np.arange(500, dtype=np.uint16).reshape(1, 500),
    "test_y": np.array([7], np.int32),
}


def no_build():
    raise AssertionError("built again")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "data" / "a.bin"
    path.parent.mkdir()
    path.write_bytes(b"12345")
    return path


def call(folder, source, build=lambda: ARRAYS, name="set", **options):
    data = vars(cached(folder / "cache", name, options, source.parent, [source], build, CLASSES))
    assert data.pop("classes") == CLASSES
    return data


def test_second_call_reads(tmp_path, source):
    call(tmp_path, source, steps=3)
    again = call(tmp_path, source, no_build, steps=3)
    assert set(again) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(again[name], array)
        assert again[name].dtype == array.dtype
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".npz"]


def test_everything_is_in_the_key(tmp_path, source):
    call(tmp_path, source, steps=3)
    built = []
    build = lambda: built.append(1) or ARRAYS
    call(tmp_path, source, build, steps=4)
    call(tmp_path, source, build, steps=3, size=2)
    call(tmp_path, source, build, name="other", steps=3)
    stat = source.stat()
    source.write_bytes(b"123456")
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    call(tmp_path, source, build, steps=3)
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    call(tmp_path, source, build, steps=3)
    call(tmp_path, source.rename(source.with_name("b.bin")), build, steps=3)
    assert len(built) == 6


def test_files_of_the_same_name_size_and_time_are_told_apart(tmp_path, source):
    """As archives unpack them."""
    other = tmp_path / "other" / source.name
    other.parent.mkdir()
    other.write_bytes(b"54321")
    for path in (source, other):
        os.utime(path, (0, 0))
    call(tmp_path, source)
    built = []
    call(tmp_path, other, lambda: built.append(1) or ARRAYS)
    assert built


def test_a_moved_folder_stays_valid(tmp_path, source):
    call(tmp_path, source)
    moved = source.parent.rename(tmp_path / "elsewhere")
    call(tmp_path, moved / source.name, no_build)


@pytest.mark.parametrize("damage", ["byte", "half", "empty", "text"])
def test_damage_is_reported_and_repaired(tmp_path, source, damage):
    call(tmp_path, source)
    (path,) = (tmp_path / "cache").iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(
        {"byte": data, "half": data[: len(data) // 2], "empty": b"", "text": b"PK no zip"}[damage]
    )
    with pytest.warns(UserWarning, match=re.escape(f"{path}: damaged cache, it is made again")):
        again = call(tmp_path, source)
    np.testing.assert_array_equal(again["train_x"], ARRAYS["train_x"])
    np.testing.assert_array_equal(call(tmp_path, source, no_build)["train_x"], ARRAYS["train_x"])


def entry(**arrays):
    np.savez(out := io.BytesIO(), **arrays)
    return out.getvalue()


def zipped(name, data):
    with zipfile.ZipFile(out := io.BytesIO(), "w") as file:
        file.writestr(name, data)
    return out.getvalue()


@pytest.mark.parametrize(
    "whole",
    [
        pytest.param(entry(), id="no arrays"),
        pytest.param(entry(**ARRAYS, more=np.zeros(1)), id="one more"),
        pytest.param(entry(**{**ARRAYS, "test_y": np.array([100])}), id="a label beyond the classes"),
        pytest.param(entry(**{**ARRAYS, "train_y": np.array([{}] * 100, object)}), id="objects"),
        pytest.param(zipped("train_x", b"no array"), id="text"),
    ],
)
def test_an_entry_that_is_no_data_set_is_made_again(tmp_path, source, whole):
    call(tmp_path, source)
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(whole)
    with pytest.warns(UserWarning, match=re.escape(f"{path}: damaged cache, it is made again")):
        call(tmp_path, source)
    np.testing.assert_array_equal(call(tmp_path, source, no_build)["train_x"], ARRAYS["train_x"])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="only Unix has FIFOs in folders")
def test_a_fifo_is_not_waited_for(tmp_path, source):
    call(tmp_path, source)
    (path,) = (tmp_path / "cache").iterdir()
    path.unlink()
    os.mkfifo(path)
    with pytest.warns(
        UserWarning, match=f"{path}: damaged cache, it is made again: {path}: not a regular file"
    ):
        call(tmp_path, source)
    call(tmp_path, source, no_build)


def test_wrong_data_are_not_kept(tmp_path, source):
    with pytest.raises(ValueError, match=r"test: label 100 of sample 0 is outside 0..99"):
        call(tmp_path, source, lambda: {**ARRAYS, "test_y": np.array([100])})
    assert not list((tmp_path / "cache").glob("*"))


def test_full_disk(tmp_path, source):
    """A limit on the size of files stands in for a full disk: the write fails half way."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.warns(UserWarning, match=r"set-\w+\.npz: 101,404 bytes of cache cannot be kept"):
            found = call(tmp_path, source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    np.testing.assert_array_equal(found["train_x"], ARRAYS["train_x"])
    assert not list((tmp_path / "cache").iterdir())


def test_a_killed_run_leaves_no_cache(tmp_path, source):
    code = (
        "import os, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from sltt_jax.data import cache\n"
        "os.fsync = lambda _: os.kill(os.getpid(), 9)\n"
        "folder, source = map(Path, sys.argv[1:])\n"
        "build = lambda: {'train_x': np.zeros(1), 'train_y': np.array([0])} | {\n"
        "    'test_x': np.zeros(1), 'test_y': np.array([0])}\n"
        "cache.cached(folder / 'cache', 'set', {}, source.parent, [source], build, 100)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path, source])
    assert killed.returncode == -9
    (rest,) = (tmp_path / "cache").iterdir()
    assert rest.suffix == ".tmp"
    np.testing.assert_array_equal(call(tmp_path, source)["train_x"], ARRAYS["train_x"])
    # It might be of a live process; after a day without a write it is not, and the next use deletes it.
    assert rest.exists()
    age(rest, DAY + 60)
    call(tmp_path, source, no_build)
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".npz"]


def age(path, seconds):
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_only_old_rests_are_deleted(tmp_path, source):
    call(tmp_path, source)
    folder = tmp_path / "cache"
    for name in ("old.npz.0a.tmp", "young.npz.0b.tmp", "others.tmp", "others.npz"):
        (folder / name).write_bytes(b"half")
        if not name.startswith("young"):
            age(folder / name, DAY + 60)
    age(folder / "young.npz.0b.tmp", DAY - 60)
    call(tmp_path, source, no_build)
    names = {p.name for p in folder.iterdir()}
    assert {"young.npz.0b.tmp", "others.tmp", "others.npz"} < names and "old.npz.0a.tmp" not in names


def test_a_folder_is_as_old_as_its_youngest_file(tmp_path):
    rest = tmp_path / "rest" / "inner"
    rest.mkdir(parents=True)
    (rest / "shard").write_bytes(b"half")
    for path in (rest.parent, rest):
        age(path, 2 * DAY)
    remove_rests([rest.parent])
    assert rest.exists()
    age(rest / "shard", 2 * DAY)
    remove_rests([rest.parent, tmp_path / "gone meanwhile"])
    assert list(tmp_path.iterdir()) == []


def test_another_process_is_first(tmp_path, source):
    """It writes the cache while this one builds."""
    build = lambda: call(tmp_path, source) and ARRAYS
    np.testing.assert_array_equal(call(tmp_path, source, build)["train_x"], ARRAYS["train_x"])
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".npz"]
    np.testing.assert_array_equal(call(tmp_path, source, no_build)["train_x"], ARRAYS["train_x"])


def test_two_processes_at_once(tmp_path, source):
    """Both begin to write, each half way waits for the other, and both end with the same whole cache."""
    code = (
        "import os, sys, time, numpy as np\n"
        "from pathlib import Path\n"
        "from sltt_jax.data import cache\n"
        "folder, source = map(Path, sys.argv[1:])\n"
        "def wait(_):\n"
        "    while len(list((folder / 'cache').glob('*.tmp'))) < 2: time.sleep(0.01)\n"
        "    (folder / f'{os.getpid()}.seen').touch()\n"
        "    while len(list(folder.glob('*.seen'))) < 2: time.sleep(0.01)\n"
        "os.fsync = wait\n"
        "x, y = np.arange(50_000, dtype=np.uint32), np.zeros(50_000, int)\n"
        "build = lambda: {'train_x': x, 'train_y': y, 'test_x': x, 'test_y': y}\n"
        "data = cache.cached(folder / 'cache', 'set', {}, source.parent, [source], build, 100)\n"
        "assert data.train_x.sum() == 50_000 * 49_999 // 2\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, tmp_path, source]) for _ in range(2)]
    try:
        assert [process.wait(timeout=60) for process in both] == [0, 0]
    finally:
        for process in both:
            process.kill()
    assert len(list(tmp_path.glob("*.seen"))) == 2
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".npz"]
    np.testing.assert_array_equal(call(tmp_path, source, no_build)["train_x"], np.arange(50_000))


def test_cache_folder_cannot_be_made(tmp_path, source):
    (tmp_path / "cache").write_bytes(b"a file")
    with pytest.warns(UserWarning, match=r"set-\w+\.npz: .* bytes of cache cannot be kept"):
        np.testing.assert_array_equal(call(tmp_path, source)["train_x"], ARRAYS["train_x"])
