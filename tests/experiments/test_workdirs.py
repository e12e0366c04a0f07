"""The directory of a run: nothing that the run did not write is deleted, and two runs do not share it."""

import dataclasses
import json
import shutil

import pytest
import train
from common.runs import Run
from common.workdirs import prepare, read_run

from sltt_jax import training
from tests.common.scripts import QUICK, call


def start(workdir, **changes):
    """Makes a workdir ready, without training in it."""
    with prepare(Run.of("digits_mlp", features=(16,), T=3, workdir=workdir, **changes)):
        pass


def contents(folder):
    """All that is in a folder, without the lock."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "summary.json", "checkpoints/3/params", "tensorboard/mine"]
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_files_without_settings_are_not_ours(tmp_path, name, overwrite):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("of weeks")
    before = contents(tmp_path)
    with pytest.raises(
        ValueError, match=f"{tmp_path} has {name.split('/')[0]}, but no config.json that tells"
    ):
        start(tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == before


DAMAGE = {
    "empty": lambda text: "",
    "torn": lambda text: text[: len(text) // 2],
    "a list": lambda text: "[]",
    "of something else": lambda text: '{"learning_rate": 0.1}',
    "of another version": lambda text: json.dumps(json.loads(text) | {"new": 1}),
    "another type": lambda text: json.dumps(json.loads(text) | {"T": "three"}),
    "out of range": lambda text: json.dumps(json.loads(text) | {"T": -3}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_settings(tmp_path, damage):
    start(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    path = tmp_path / "config.json"
    path.write_text(DAMAGE[damage](path.read_text()))
    before = contents(tmp_path)
    for use in (start, lambda folder: start(folder, overwrite=True), lambda folder: read_run(folder, folder)):
        with pytest.raises(ValueError, match=f"{path} is damaged, or of another version: ."):
            use(tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.slow
def test_overwriting_deletes_what_the_run_wrote_and_nothing_else(digits_run, tmp_path):
    workdir = shutil.copytree(digits_run, tmp_path / "run")
    (workdir / "tensorboard").mkdir()
    for name in ("notes.txt", "config.tmp", "checkpoints/notes.txt", "tensorboard/notes.txt"):
        (workdir / name).write_text("mine")
    (workdir / "tensorboard" / "events.out.tfevents.1").write_text("of the run")
    start(workdir, overwrite=True, seed=7)
    found = contents(workdir)
    assert json.loads(found.pop("config.json"))["seed"] == 7
    folders = {"checkpoints", "tensorboard"}
    assert {name for name in found if name not in folders} == {
        "notes.txt", "config.tmp", "checkpoints/notes.txt", "tensorboard/notes.txt"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("why", ["a link", "no permission"])
def test_overwriting_what_cannot_be_deleted_fails(digits_run, tmp_path, monkeypatch, capsys, why):
    workdir = shutil.copytree(digits_run, tmp_path / "run")
    if why == "a link":
        shutil.move(workdir / "checkpoints", tmp_path / "elsewhere")
        (workdir / "checkpoints").symlink_to(tmp_path / "elsewhere")
    else:

        def refuse(path):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("sltt_jax.training.checkpoints._remove", refuse)
    before = contents(workdir)
    assert call(train, monkeypatch, *QUICK, "--seed", 1, "--overwrite", "--workdir", workdir) == 1
    err = capsys.readouterr().err
    assert "error: " in err and f"{workdir}/checkpoints" in err
    after = contents(workdir)
    kept = ["config.json", "metrics.jsonl", "summary.json"]
    assert [after[name] for name in kept] == [before[name] for name in kept]
    if why == "a link":
        assert contents(tmp_path / "elsewhere") != {} and after == before


def test_a_second_run_is_refused(tmp_path):
    run = Run.of("digits_mlp", features=(16,), workdir=tmp_path / "run")
    with prepare(run):
        before = contents(run.workdir)
        for again in (run, dataclasses.replace(run, overwrite=True, seed=1)):
            with (
                pytest.raises(BlockingIOError, match=f"{run.workdir} is in use by another run"),
                prepare(again),
            ):
                pass
        assert contents(run.workdir) == before
    with prepare(run):
        pass


def test_processes_must_agree_on_all_but_where_they_are(tmp_path, monkeypatch):
    """With checkpoints after other updates, for one, each would wait for the other for ever."""
    monkeypatch.setattr(training, "differing", list)  # as if they agreed on nothing
    with pytest.raises(ValueError, match=r"the processes differ in .*; run the same command on all") as error:
        start(tmp_path / "run")
    named = {*str(error.value).removeprefix("the processes differ in ").partition(";")[0].split(", ")}
    where = {"workdir", "data_dir", "download"}
    assert named == {field.name for field in dataclasses.fields(Run)} - where | {"version of jax"}
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_reported_again_whatever_became_of_its_files(
    digits_run, monkeypatch, tmp_path, capsys
):
    """But for its checkpoints and its settings, without which nothing is known."""
    workdir = shutil.copytree(digits_run, tmp_path / "run")
    same = (*QUICK, "--workdir", workdir)
    metrics, summary = training.read_metrics(workdir), json.loads((workdir / "summary.json").read_text())
    for name in ("metrics.jsonl", "summary.json", "curves.png"):
        (workdir / name).unlink()
    assert call(train, monkeypatch, *same) == 0
    assert f"test accuracy        {summary['test_accuracy']:.4f}" in capsys.readouterr().out
    again = json.loads((workdir / "summary.json").read_text())
    assert training.read_metrics(workdir) == metrics and (workdir / "curves.png").exists()
    for name in ("status", "epochs", "test_accuracy", "parameters_sha256", "seconds"):
        assert again[name] == summary[name]
    shutil.rmtree(workdir / "checkpoints")
    assert call(train, monkeypatch, *same) == 1
    assert "metrics.jsonl is of a run whose checkpoints are gone" in capsys.readouterr().err
    assert json.loads((workdir / "summary.json").read_text()) == again
    assert training.read_metrics(workdir) == metrics


@pytest.mark.slow
def test_a_chunk_that_was_found_for_another_memory(tmp_path):
    start(tmp_path, chunk="auto")
    with pytest.raises(ValueError, match=r"gigabytes: None in the workdir, 8\.0 now"):
        start(tmp_path, chunk="auto", gigabytes=8.0)
