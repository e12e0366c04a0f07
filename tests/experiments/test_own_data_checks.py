"""Data of one's own that is wrong late, has changed, or does not fit the network."""

import dataclasses

import jax
import pytest
from common.runs import Run, build
from common.sources import source_of
from common.workdirs import prepare, read_run
from PIL import Image

from tests.common.own_data import HEAD, of_module

LATE = """
class Later(Batches):
    def __next__(self):
        batch = super().__next__()
        return batch if self.number < 3 else {change}
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("{**batch, 'x': batch['x'] * np.nan}", "train batch 2: input 0 is not finite"),
        ("{**batch, 'y': batch['y'] + 7}", r"train batch 2: label [789] of sample 0 is outside 0\.\.2"),
        ("{**batch, 'x': batch['x'][:4]}", r"train batch 2 is .*float32\[4, 5, 3\].*first was .*\[8, 5, 3\]"),
        ("{**batch, 'z': 1}", r"train batch 2 must be a dict of \['x', 'y'\], got \['x', 'y', 'z'\]"),
        ("{**batch, 'x': batch['x'].tolist()}", "train batch 2 must hold NumPy arrays, got float"),
        ("next(iter(()))", "train ended after 2 batches; it must go on without end"),
    ],
)
def test_a_late_batch_is_checked_like_the_first(tmp_path, change, message):
    head = LATE.format(change=change)
    data = of_module(tmp_path, "data.BatchData(Later(), test, 3), encoders.event_frames()", head).train
    start = data.get_state()
    next(data), next(data)
    with pytest.raises(ValueError, match=f"{tmp_path / 'own.py'}: {message}"):
        next(data)
    data.set_state(start)
    assert next(data)["x"].shape == (8, 5, 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("data.BatchData(Batches(), once(test()), 3)", r"test\(\) has no batches the second time"),
        ("data.BatchData(Batches(), 3, 3)", "test must be a function that returns batches, got int"),
        ("data.BatchData(object(), test, 3)", "train must be sltt_jax.data.Batches, and has no __next__"),
        ("data.BatchData(Batches(), test, 3.0)", "classes must be a whole number, got 3.0"),
        ("data.BatchData(Numpy(), test, 3)", "get_state must return plain numbers and strings"),
        (
            "data.ArrayData(x[:30], y[:30, 0], x[30:], steps(y[30:]), 3)",
            "labels differ in kind: one a sample",
        ),
        (
            "data.ArrayData(*split(x.astype(np.float64) * 1e300, y[:, 0]), 3)",
            "must fit in 32 bits, got float64",
        ),
        (
            "data.ArrayData(*split(x.astype(np.uint64) + 2**40, y[:, 0]), 3)",
            "must fit in 32 bits, got uint64",
        ),
        ("data.ArrayData(*split(x[..., :0], y[:, 0]), 3)", "at least one number each"),
    ],
)
def test_what_would_fail_late_is_refused_at_the_start(tmp_path, line, message):
    head = """
def once(batches):
    batches = iter(batches)
    return lambda: batches


class Numpy(Batches):
    def get_state(self):
        return {"number": np.int64(self.number)}
"""
    with pytest.raises(ValueError, match=f"{tmp_path / 'own.py'}: .*{message}"):
        of_module(tmp_path, f"{line}, encoders.event_frames()", head)


def test_a_late_test_batch_is_checked_too(tmp_path):
    head = "two = lambda: [*test(), {**test()[0], 'x': x[:8] * np.inf}]"
    found = of_module(tmp_path, "data.BatchData(Batches(), two, 3), encoders.event_frames()", head)
    with pytest.raises(ValueError, match=r"test batch 1: input 0 is not finite"):
        list(found.held_out["test"]())


def moved(shapes):
    (shapes / "light").rename(shapes / "bright")


def fewer(shapes):
    (shapes / "light" / "3.png").unlink()


def repainted(shapes):
    Image.new("L", (4, 4), 9).save(shapes / "light" / "3.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (moved, r"classes: \['dark', 'light'\] then, \['bright', 'dark'\] now"),
        (fewer, "training samples: 16 then, 15 now|test samples: 4 then, 3 now"),
        (repainted, "checksum: "),
    ],
)
def test_data_that_changed_are_not_trained_on_nor_evaluated(shapes, tmp_path, change, message):
    run = Run.of("digits", data=f"folder:{shapes}", batch_size=8, workdir=tmp_path / "run", data_dir=tmp_path)
    with prepare(run):
        pass
    with prepare(run):  # nothing changed
        pass
    change(shapes)
    with pytest.raises(ValueError, match=rf"{shapes} is not what the run in {tmp_path / 'run'} began with"):
        with prepare(run):
            pass
    with pytest.raises(ValueError, match=message):
        build(read_run(tmp_path / "run", tmp_path))
    with prepare(dataclasses.replace(run, overwrite=True)):
        pass
    build(read_run(tmp_path / "run", tmp_path))


def test_at_another_number_of_steps_classes_and_samples_are_compared(tmp_path):
    line = "data.ArrayData(*split(x[:, :wanted.T], y[:, 0]), classes=3), encoders.event_frames()"
    (tmp_path / "own.py").write_text(HEAD + f"    return {line}\n")
    run = Run.of("digits_mlp", data=str(tmp_path / "own.py"), T=5, batch_size=8, workdir=tmp_path / "run")
    with prepare(run):
        pass
    build(read_run(tmp_path / "run", tmp_path, T=3))
    (tmp_path / "own.py").write_text(
        HEAD.replace("(x[:30]", "(x[1:30]").replace("y[:30]", "y[1:30]") + f"    return {line}\n"
    )
    with pytest.raises(ValueError, match="training samples: 30 then, 29 now"):
        build(read_run(tmp_path / "run", tmp_path, T=3))


def test_a_network_that_does_not_take_the_data_claims_no_workdir(shapes, tmp_path):
    places = {"workdir": tmp_path / "run", "data_dir": tmp_path}
    run = Run.of("digits", data=f"folder:{shapes}", size=3, batch_size=8, **places)
    with pytest.raises(
        ValueError, match=rf"folder:{shapes}: convnet does not take it: .*at least 4x4 pixels"
    ):
        with prepare(run):
            pass
    assert not (tmp_path / "run").exists()
    with prepare(dataclasses.replace(run, size=4)):
        pass


def test_a_path_through_its_parent_is_the_same_run(shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("folder:shapes", f"folder:../{tmp_path.name}/shapes", "folder:shapes/../shapes/")
    assert len({str(source_of(name)) for name in names}) == 1


def test_parameters_that_do_not_fit_claim_no_workdir(tmp_path):
    with prepare(Run.of("digits_mlp", features=(8,), workdir=tmp_path / "first")) as (
        experiment,
        checkpoints,
    ):
        state = experiment.initial_state(jax.random.key(0))
        checkpoints.save(1, {"params": state.params, "variables": state.variables}, {})
        checkpoints.wait()
    run = Run.of("digits_mlp", features=(9,), init_from=tmp_path / "first", workdir=tmp_path / "second")
    with pytest.raises(ValueError, match=r"does not fit: params.*float32\[8\], expected float32\[9\]"):
        with prepare(run):
            pass
    assert not (tmp_path / "second").exists()


def test_a_damaged_record_of_the_data_is_named(shapes, tmp_path):
    run = Run.of("digits", data=f"folder:{shapes}", batch_size=8, workdir=tmp_path / "run", data_dir=tmp_path)
    with prepare(run):
        pass
    for text in ("[]", "{"):
        (tmp_path / "run" / "data.json").write_text(text)
        with pytest.raises(ValueError, match=f"{tmp_path / 'run' / 'data.json'} is damaged"):
            build(run)
