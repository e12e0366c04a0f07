"""Data of one's own in the scripts, without training: how it is found, said and checked."""

import json

import jax
import numpy as np
import pytest
import train
from common.configs import Config
from common.opened import open_data
from common.runs import Run
from common.sources import source_of
from common.workdirs import prepare, read_run
from PIL import Image

from tests.common.own_data import of_module, opened
from tests.common.scripts import assert_refused


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [source_of(name) for name in ("digits", "folders:x", "x.npy")] == [None] * 3
    named = {"folder:a/b": f"folder:{tmp_path}/a/b", "events:/c": "events:/c", "own.py": f"{tmp_path}/own.py"}
    for name, absolute in named.items():
        assert Config("digits", name).data == absolute == Config("digits", absolute).data
    with pytest.raises(ValueError, match="names no folder; expected folder:PATH"):
        Config("digits", "folder:")


def test_images(shapes, tmp_path):
    found = opened(tmp_path, data=f"folder:{shapes}", validation=0.2)
    assert found.classes == 2 and found.held_out.keys() == {"validation", "test"}
    assert "\n".join(found.about).startswith(
        f"data     folder:{shapes}\nsamples  16 for training, 4 for testing"
    )
    assert "2 classes: dark 8 + 2, light 8 + 2" in found.about[2]
    x = np.concatenate([batch["x"] for _, batch in zip(range(4), found.train, strict=False)])
    inputs = found.encode(x, None).x
    assert x.dtype == np.uint8 and abs(float(inputs.std()) - 1) < 0.2 and abs(float(inputs.mean())) < 0.5
    flat = opened(tmp_path, data=f"folder:{shapes}", model="mlp", encoding="rate")
    assert flat.encode(x, jax.random.key(0)).shape == (5, len(x), 16)


def test_a_run_is_read_from_another_directory(shapes, tmp_path, monkeypatch):
    """By its config.json alone."""
    monkeypatch.chdir(tmp_path)
    run = Run.of(
        "digits", data="folder:shapes", test_share=0.4, size=4, batch_size=8, workdir=tmp_path / "run"
    )
    with prepare(run) as (experiment, _):
        assert experiment.model.classes == 2
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["data"], config["size"], config["test_share"]) == (f"folder:{shapes}", 4, 0.4)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = open_data(read_run(tmp_path / "run", tmp_path / "data"), tmp_path / "data", made=False)
    assert len(list(again.held_out["test"]())) == 1 and again.batch["x"].shape == (8, 4, 4, 1)
    np.testing.assert_array_equal(again.batch["x"], experiment.data.batch["x"])


def test_a_run_from_before_there_was_a_size_is_read(tmp_path):
    with prepare(Run.of("digits_mlp", workdir=tmp_path)):
        pass
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("size", "test_share"):
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with prepare(Run.of("digits_mlp", workdir=tmp_path)):
        assert read_run(tmp_path, tmp_path).size is None


def test_arrays_of_a_file(tmp_path):
    arrays = "data.ArrayData(*split(x, y[:, 0]), classes=3)"
    found = of_module(tmp_path, f"{arrays}, encoders.event_frames()")
    assert found.encode(found.batch["x"], None).shape == (5, 8, 3) and found.classes == 3
    assert "samples  30 for training, 10 for testing, each [5, 3]" in found.about
    assert found.about[-1].endswith("the network sees [3] at each step")
    per_step = "data.ArrayData(x[:30], steps(y[:30]), x[30:], steps(y[30:]), classes=3)"
    found = of_module(tmp_path, f"{per_step}, encoders.event_frames()")
    assert found.encode_target(found.batch["y"]).target["y"].shape == (5, 8)
    images = "data.ArrayData(*split(x.reshape(40, 5, 3, 1), y[:, 0]), classes=3), encoders.direct(wanted.T)"
    assert of_module(tmp_path, images, model="mlp").encode(np.zeros((8, 5, 3, 1)), None).x.shape == (8, 15)


def test_batches_of_a_file(tmp_path):
    found = of_module(tmp_path, "data.BatchData(Batches(), test, 3), encoders.event_frames()")
    assert found.train.get_state() == {"number": 0} and found.train.steps_per_epoch == 3
    np.testing.assert_array_equal(found.batch["x"], next(found.train)["x"])
    assert list(found.held_out) == ["test"] and found.batch["x"].shape == (8, 5, 3)
    with pytest.raises(ValueError, match="has batches of its own: no --train-samples"):
        of_module(tmp_path, "data.BatchData(Batches(), test, 3), encoders.event_frames()", validation=0.1)


ARRAYS = "data.ArrayData(*split({}), classes=3), encoders.event_frames()"
BATCHES = "data.BatchData(Batches({}), test, 3), encoders.event_frames()"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("None", r"must return \(sltt_jax.data.ArrayData or BatchData, encoder\), got \(NoneType\)"),
        ("x, y", r"got \(ndarray, ndarray\)"),
        (ARRAYS.format("x.tolist(), y[:, 0]"), "train_x must be a NumPy array, got list"),
        (ARRAYS.format("x, y[:20, 0]"), "expected N >= 1 inputs and labels"),
        (ARRAYS.format("np.where(x > 1, np.nan, x), y[:, 0]"), r"train: input \d+ is not finite"),
        (ARRAYS.format("x, y[:, 0] + 1"), r"train: label 3 of sample \d+ is outside 0\.\.2"),
        (ARRAYS.format("x, y[:, 0] * 1.5"), "labels must be integers, got float64"),
        (
            ARRAYS.format("x[:, :4], y[:, 0]"),
            r"the encoder makes 4 steps of \[8, 4, 3\], and the run has T=5",
        ),
        (ARRAYS.format("x[:, 0], y[:, 0]"), r"the encoder makes 3 steps of \[8, 3\], and the run has T=5"),
        (
            "data.ArrayData(*split(x, 0 * y[:, 0]), classes=1), encoders.event_frames()",
            "at least two classes, got 1",
        ),
        (
            "data.ArrayData(x[:30, :4], steps(y[:30, :4]), x[30:, :4], steps(y[30:, :4]), classes=3), "
            "encoders.direct(wanted.T)",
            "there are labels of 4 steps, and the run has T=5",
        ),
        (
            "data.ArrayData(*split(x, y[:, 0]), classes=3), lambda x, key: x[0, 0, 0]",
            "the encoder cannot encode",
        ),
        (BATCHES.format("z=1"), r"train batch 0 must be a dict of \['x', 'y'\], got \['x', 'y', 'z'\]"),
        (BATCHES.format("y=y[:8, 0] - 3"), r"train batch 0: label -[123]"),
        (BATCHES.format("x=x[:4], y=y[:4, 0]"), "must have batch_size=8 samples, got 4"),
        (
            "data.BatchData(Batches(), lambda: [], 3), encoders.event_frames()",
            r"test\(\) returned no batches",
        ),
    ],
)
def test_what_a_file_may_not_return(tmp_path, line, message):
    with pytest.raises(ValueError, match=f"{tmp_path / 'own.py'}.*{message}"):
        of_module(tmp_path, line)


@pytest.mark.parametrize(
    ("text", "message"),
    [("x = 1", r"it has no function load_data\(wanted\)"), ("def load_data(:", "line 1: invalid syntax")],
)
def test_files_that_are_refused(tmp_path, text, message):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(ValueError, match=f"{tmp_path / 'own.py'}: {message}"):
        opened(tmp_path, data=str(tmp_path / "own.py"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--data", "folder:nowhere"), "nowhere: no such folder"),
        (("--data", "nowhere.py"), "there is no file"),
        (("--data", "folder:shapes", "--made"), "made is for data sets by name"),
        (("--data", "folder:shapes", "--batch-size", "40"), "batch_size must be in 1..16"),
        (("--data", "events:shapes"), "0.png: not of a kind that is read"),
        (("--data", "folder:shapes/dark"), "lies in no class folder"),
        (("--size", "8"), "size and test_share are for data in class folders"),
        (("--data", "folder:shapes", "--test-share", "1"), "test_share must be above 0 and below 1"),
        (("--data", "shapes"), "unknown data set 'shapes'; there are digits"),
    ],
)
def test_commands_that_are_refused(shapes, args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert_refused(train, ("digits", *args), message, tmp_path / "run", monkeypatch, capsys)


def test_an_image_without_contrast(shapes, tmp_path):
    for path in shapes.glob("*/*"):
        Image.new("L", (4, 4), 7).save(path)
    with pytest.raises(ValueError, match="in channel 0 all pixels of all images are the same"):
        opened(tmp_path, data=f"folder:{shapes}")
