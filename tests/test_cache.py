import os
import re
import resource
import subprocess
import sys

import numpy as np
import pytest

from sltt_jax.data.cache import cached

ARRAYS = {"x": np.arange(50_000, dtype=np.uint16).reshape(100, 500), "y": np.arange(100, dtype=np.int32)}


def no_build():
    raise AssertionError("built again")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "data" / "a.bin"
    path.parent.mkdir()
    path.write_bytes(b"12345")
    return path


def call(folder, source, build=lambda: ARRAYS, name="set", **options):
    return cached(folder / "cache", name, options, source.parent, [source], build)


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
    np.testing.assert_array_equal(again["x"], ARRAYS["x"])
    np.testing.assert_array_equal(call(tmp_path, source, no_build)["x"], ARRAYS["x"])


def test_full_disk(tmp_path, source):
    """A limit on the size of files stands in for a full disk: the write fails half way."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"cannot write 100,400 bytes of cache: .*set-\w+\.npz"):
            call(tmp_path, source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "cache").iterdir())


def test_a_killed_run_leaves_no_cache(tmp_path, source):
    code = (
        "import os, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from sltt_jax.data import cache\n"
        "os.fsync = lambda _: os.kill(os.getpid(), 9)\n"
        "folder, source = map(Path, sys.argv[1:])\n"
        "cache.cached(folder / 'cache', 'set', {}, source.parent, [source], lambda: {'x': np.zeros(9)})\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path, source])
    assert killed.returncode == -9
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".tmp"]
    np.testing.assert_array_equal(call(tmp_path, source)["x"], ARRAYS["x"])


def test_cache_folder_cannot_be_made(tmp_path, source):
    (tmp_path / "cache").write_bytes(b"a file")
    with pytest.raises(OSError, match=r"cannot write .* bytes of cache: .*set-\w+\.npz"):
        call(tmp_path, source)
