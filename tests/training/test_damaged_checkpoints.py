"""What happens to checkpoints that get damaged, in all ways."""

import re
import shutil
import warnings

import chex
import pytest

from sltt_jax.training import CHECKPOINTS, DAMAGED, load_parts, sha256
from tests.common.checkpoints import KINDS, METADATA, edit, load, parts, save, values

# Orbax reads arrays side by side, and where one fails it closes the event loop that the others come back to.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with two checkpoints."""
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, 1, 2)
    return workdir


DAMAGE = {
    **{
        f"{kind} {name}": lambda checkpoint, find=find, damage=damage: damage(find(checkpoint))
        for kind, damage in KINDS.items()
        for name, find in {
            "values": values,
            "manifest": lambda checkpoint: checkpoint / "params" / "manifest.ocdbt",
            "index": lambda checkpoint: next((checkpoint / "params" / "d").iterdir()),
            "forms of the arrays": lambda checkpoint: checkpoint / "params" / "_METADATA",
            "metadata": lambda checkpoint: checkpoint / METADATA,
        }.items()
    },
    "a part is gone": lambda checkpoint: shutil.rmtree(checkpoint / "opt_state"),
    "an empty directory": lambda checkpoint: (shutil.rmtree(checkpoint), checkpoint.mkdir()),
    "a file of its name": lambda checkpoint: (shutil.rmtree(checkpoint), checkpoint.write_text("")),
    "changed progress": edit("progress", {"epoch": 3}),
    "changed checksum": edit("checksum", "0" * 64),
    "changed score": edit("score", 1.0),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_one_before_takes_the_place_of_a_damaged_one(tmp_path, saved, damage):
    workdir = shutil.copytree(saved, tmp_path / "run")
    DAMAGE[damage](workdir / CHECKPOINTS / "2")
    with pytest.warns(UserWarning, match="checkpoint 2 is damaged") as caught:
        loaded, progress = load(workdir)
    assert progress == {"epoch": 1} and sha256(loaded) == sha256(parts(1))
    (message,) = (str(w.message) for w in caught)
    assert re.fullmatch(rf"checkpoint 2 is damaged \(.{{3,203}}\); it was moved to {workdir}.*", message)
    assert (workdir / DAMAGED / "2").exists() and not (workdir / CHECKPOINTS / "2").exists()
    # The next run saves under the same number, and finds nothing to complain of.
    assert save(workdir, 2) == [1, 2]
    assert sha256(load(workdir)[0]) == sha256(parts(2))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_damage_of_any_file_gives_other_values(tmp_path, saved, kind):
    """Some files are not read at all; then what is loaded is still what was saved."""
    files = [p.relative_to(saved) for p in (saved / CHECKPOINTS / "2").rglob("*") if p.is_file()]
    found = {1: 0, 2: 0}
    for i, file in enumerate(files):
        workdir = shutil.copytree(saved, tmp_path / str(i))
        KINDS[kind](workdir / file)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded, progress = load(workdir)
        n = progress["epoch"]
        assert sha256(loaded) == sha256(parts(n)), file
        assert len([w for w in caught if "is damaged" in str(w.message)]) == (n == 1), file
        found[n] += 1
    assert len(files) > 15 and found[1] > 5


def test_an_error_where_no_checkpoint_is_left(tmp_path, saved):
    workdir = shutil.copytree(saved, tmp_path / "run")
    for n in (1, 2):
        KINDS["truncated"](values(workdir / CHECKPOINTS / str(n)))
    message = "all checkpoints of .* are damaged; they were moved to .*" + DAMAGED
    with pytest.warns(UserWarning, match="is damaged") as caught, pytest.raises(ValueError, match=message):
        load(workdir)
    assert [str(w.message).split()[1] for w in caught] == ["2", "1"]
    with pytest.raises(ValueError, match=message):  # it does not start anew at the second time either
        load(workdir)
    assert sorted(p.name for p in (workdir / DAMAGED).iterdir()) == ["1", "2"]


def test_damaged_twice_under_the_same_number(tmp_path):
    save(tmp_path, 1)
    for _ in range(2):
        save(tmp_path, 2)
        (tmp_path / CHECKPOINTS / "2" / METADATA).unlink()
        with pytest.warns(UserWarning, match="checkpoint 2 is damaged"):
            load(tmp_path)
    assert sorted(p.name for p in (tmp_path / DAMAGED).iterdir()) == ["2", "2_2"]


def test_a_damaged_one_is_not_taken_for_the_best(tmp_path):
    scores = {1: 0.9, 2: 0.1, 3: 0.2, 4: 0.3}
    save(tmp_path, 1, 2, scores=scores)
    edit("score", 2.0)(tmp_path / CHECKPOINTS / "1")
    with pytest.warns(UserWarning, match=r"checkpoint 1 is damaged \(the checksum of"):
        assert save(tmp_path, 3, 4, scores=scores) == [3, 4]


def test_damaged_parts_for_a_run_of_its_own(tmp_path, saved):
    like = {"params": parts(0)["params"]}
    workdir = shutil.copytree(saved, tmp_path / "run")
    KINDS["truncated"](values(workdir / CHECKPOINTS / "2"))
    with pytest.raises(ValueError, match=r"checkpoint 2 in .* is damaged: "):
        load_parts(workdir, like)
    loaded = load_parts(workdir / CHECKPOINTS / "1", like)
    chex.assert_trees_all_equal(loaded, {"params": parts(1)["params"]})
    edit("score", 1.0)(workdir / CHECKPOINTS / "1")
    with pytest.raises(ValueError, match=r"checkpoint 1 in .* is damaged: the checksum of its metadata"):
        load_parts(workdir, like, best=True)


def test_a_bug_of_ours_is_not_taken_for_damage(tmp_path, saved, monkeypatch):
    """Not even one whose type is that of what Orbax raises."""
    workdir = shutil.copytree(saved, tmp_path / "run")

    def bug(*_):
        raise error

    monkeypatch.setattr("sltt_jax.training.checkpoint_files.sha256", bug)
    for error in (KeyError("bug"), TypeError("bug"), ValueError("bug"), RuntimeError("bug")):
        with pytest.raises(type(error), match=r"^'?bug'?$"):
            load(workdir)
    assert not (workdir / DAMAGED).exists()
