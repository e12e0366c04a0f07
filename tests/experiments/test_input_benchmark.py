"""The benchmark of the input, at sizes that say nothing of speed."""

import io
import json
import threading
import time
from functools import partial

import input_benchmark
import jax
import numpy as np
import pytest
from common import configs
from common.photographs import photograph, photographs
from common.runs import training_batches
from input_benchmark import time_batches, time_loop
from PIL import Image

from sltt_jax.models import NFResNet
from tests.common.scripts import call, unboxed

pytestmark = pytest.mark.usefixtures("quick_compile")

INPUTS = "mnist", "imagenet_stage1"
TINY = (
    "--reduced", "--batches", 3, "--warmup", 1, "--photographs", 6, "--batch-size", 2, "--workers", 0,
)  # fmt: skip


@pytest.mark.parametrize("inputs", [pytest.param(of, marks=pytest.mark.slow) for of in (("mnist",), INPUTS)])
def test_main(inputs, monkeypatch, tmp_path, capsys):
    # One block in place of sixteen: most of the time is that of the compiler.
    shallow = partial(NFResNet, blocks=(1,), bottleneck=False)
    monkeypatch.setitem(configs.NF_RESNETS, "nf_resnet34", shallow)
    workdir = tmp_path / "inputs"
    args = (*TINY, "--inputs", *inputs, "--data-dir", tmp_path / "none", "--workdir", workdir)
    assert call(input_benchmark, monkeypatch, *args) == 0
    result = json.loads((workdir / "inputs.json").read_text())
    assert result["device"] == jax.devices()[0].device_kind and result["batches"] == 3
    rows = result["inputs"]
    assert tuple(rows) == inputs
    expected = {
        "mnist": ([16, 28, 28, 1], 4, "convnet"),
        "imagenet_stage1": ([2, 224, 224, 3], 1, "nf_resnet34, width 0.015625"),
    }
    for name in inputs:
        batch, T, network = expected[name]
        row = rows[name]
        assert (row["batch"], row["T"], row["network"], row["made"]) == (batch, T, network, True)
        assert row["batch_mib"] == np.prod(batch) / 2**20  # all are of one byte a number
        for part in ("pipeline_ms", "update_ms", "loop_ms"):
            assert 0 < row[part]["median"] <= row[part]["p95"] and row[part]["mean"] > 0
        assert 0 <= row["waiting"] < 1
    out = capsys.readouterr().out
    shapes = {"mnist": "16 x 28 x 28 x 1 (0.01 MiB)", "imagenet_stage1": "2 x 224 x 224 x 3 (0.29 MiB)"}
    for words in ("device", *(f"{name}: made up, {shapes[name]}" for name in inputs), str(workdir)):
        assert words in out
    lines = out.splitlines()
    numbers = next(line for line in lines if line.startswith("mnist ")).split()[1:]
    assert len(numbers) == 10 and numbers[0] == f"{rows['mnist']['pipeline_ms']['median']:.2f}"


def test_frames_of_nmnist(tmp_path):
    """Made up where there are none: the preset's batches, uint8, on the device."""
    settings = input_benchmark.Settings(data_dir=tmp_path)
    experiment = input_benchmark.prepare("nmnist", settings, tmp_path / "none")
    assert experiment.run.made and experiment.run.T == 10 and len(experiment.devices) == 1
    batch = next(training_batches(experiment))
    assert isinstance(batch["x"], jax.Array) and batch["x"].dtype == np.uint8
    assert batch["x"].shape == (50, 10, 34, 34, 2) and batch["y"].shape == (50,)


def test_the_stream_decodes_photographs(tmp_path):
    settings = input_benchmark.Settings(data_dir=tmp_path, photographs=3, batch_size=2, workers=0)
    experiment = input_benchmark.prepare("imagenet_stage2", settings, tmp_path / "tfds")
    assert experiment.run.T == 6 and experiment.run.width == 0.125
    assert experiment.data.train.steps_per_epoch == 1
    batches = training_batches(experiment)
    first, second = (np.asarray(next(batches)["x"]) for _ in range(2))
    assert first.shape == second.shape == (2, 224, 224, 3) and first.dtype == np.uint8
    assert first.std() > 30 and not np.array_equal(first, second)  # each epoch crops anew


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--batches", 0), "batches must be >= 1, got 0"),
        (("--warmup", 0), "warmup must be >= 1, got 0"),
        (("--workers", -1), "workers must be >= 0, got -1"),
        (("--photographs", 3, "--batch-size", 4), "at least one batch of 4, got 3"),
        # A folder that is there is read; an empty one is not replaced by made-up frames.
        (("--inputs", "mnist", "nmnist"), "nmnist/Train: no such folder"),
    ],
)
def test_bad_settings(args, message, monkeypatch, tmp_path, capsys):
    (tmp_path / "nmnist").mkdir()
    monkeypatch.chdir(tmp_path)
    assert call(input_benchmark, monkeypatch, *args, "--data-dir", tmp_path) in (1, 2)  # 2 is tyro's
    assert message in unboxed(capsys.readouterr().err)
    assert not (tmp_path / "runs" / "inputs" / "inputs.json").exists()


class Pending:
    """The metrics of an update that is not done."""

    def __init__(self):
        self.done = threading.Event()

    def block_until_ready(self):
        assert self.done.wait(timeout=30)
        return self


def test_a_fed_device_does_not_wait():
    """Every update ends after the next batch was taken."""
    count, pending, seen = 6, [], []

    def update(state, batch):
        seen.append(batch)
        if pending:
            pending[-1].done.set()
        pending.append(Pending())
        if len(pending) == count:
            pending[-1].done.set()
        return state + 1, pending[-1]

    state, times, waits = time_loop(update, 0, iter(range(100)), count)
    assert (state, seen) == (count, list(range(count)))
    assert len(times) == count and min(times) > 0
    assert waits == [0.0] * count


def test_a_starved_device_waits():
    """Every update is done at once, and the batches take their time; the first wait is not counted."""

    def slow():
        for i in range(6):
            time.sleep(0.03)
            yield i

    _, times, waits = time_loop(lambda state, batch: (state, np.zeros(())), 0, slow(), 6)
    assert waits[0] == 0 and 0 < sum(waits) < sum(times)


def test_time_batches_takes_as_many_as_it_times():
    batches = iter(range(9))
    times = time_batches(batches, 4)
    assert len(times) == 4 and min(times) > 0 and next(batches) == 4


def test_photographs(tmp_path):
    first, same = (photograph(np.random.default_rng(0)) for _ in range(2))
    other = photograph(np.random.default_rng(1))
    assert first == same != other
    image = Image.open(io.BytesIO(first))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (500, 375))
    pixels = np.asarray(image).astype(float)
    assert 30 < pixels.std() < 80
    assert 95_000 < (len(first) + len(other)) / 2 < 125_000  # the mean of ImageNet is 110 kB

    records = photographs(tmp_path / "tfds", 3, seed=0)
    assert len(records) == 3 and first in [records[i]["image"] for i in range(3)]
    assert all(0 <= records[i]["label"] < 1000 for i in range(3))
    # They are made once.
    assert len(photographs(tmp_path / "tfds", 99, seed=0)) == 3
