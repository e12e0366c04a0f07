"""No damage to a file hangs, crashes or fills the process that reads it, or is reported without its name."""

import subprocess
import sys

import pytest

# By the group that makes them in `tests.common.fuzz`.
READERS = {
    "events": ["nmnist", "aedat2", "aedat3", "aedat4", "npy", "wav"],
    "listings": ["trials", "labels"],
    "hdf5": ["hdf5"],
    "matlab": ["matlab"],
    "graphs": ["nir"],
    "images": ["idx", "idx packed", "idx gzip", "cifar", "cifar gzip", "jpeg", "png"],
    "archives": ["imagenet train", "imagenet validation"],
    "prepared": ["shard", "cache"],
    "weights": ["pth", "pickle", "safetensors"],
}
PACKAGES = {
    "aedat4": "aedat",
    "hdf5": "h5py",
    "nir": "nir",
    "pth": "torch",
    "pickle": "torch",
    "safetensors": "torch",
}


@pytest.mark.slow
@pytest.mark.parametrize(("group", "name"), [(g, name) for g, names in READERS.items() for name in names])
def test_damage_is_refused_by_name(group, name, tmp_path):
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name], reason="an optional package writes or reads these files")
    number = (
        "60" if name in ("aedat4", "hdf5", "matlab", "nir") else "400"
    )  # these are read in processes of their own
    command = [sys.executable, "-m", "tests.common.fuzz", group, name, str(tmp_path), number, "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 0, f"{ended.returncode}: {ended.stderr[-3000:]}"
    # Some damage leaves a file that is as good as any.
    assert int(ended.stdout.split("refused ")[1]) >= 30
