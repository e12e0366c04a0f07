"""Checkpoints: what is kept, what comes back, and what happens to those that get damaged."""

import json
import re
import resource
import shutil
import signal
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import training
from sltt_jax.training import CHECKPOINTS, DAMAGED, Checkpoints, load_parts, sha256

# Orbax reads arrays side by side, and where one fails it closes the event loop that the others come back to.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class Momentum(NamedTuple):
    count: jax.Array
    trace: dict


def parts(n):
    """Parts of a state as they come, with values that depend on `n`."""
    rng = np.random.default_rng(n)
    # Long enough, and random, so that its values are in a file of their own.
    w = jnp.asarray(rng.normal(size=(40, 50)), jnp.float32)
    return {
        "params": {"w": w, "b": jnp.full(3, n, jnp.bfloat16)},
        "opt_state": (Momentum(jnp.int32(n), {"w": -w, "b": jnp.zeros(3)}), ()),
        "step": jnp.int32(n),
        "key": jax.random.key(n),
        "variables": {},
        "loss_scale": None,
    }


def save(workdir, *numbers, keep=2, scores=None):
    with Checkpoints(workdir, keep=keep) as checkpoints:
        for n in numbers:
            checkpoints.save(n, parts(n), {"epoch": n}, score=None if scores is None else scores[n])
    return checkpoints.numbers


def load(workdir, like=None):
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.load(like or parts(0))


def test_every_part_comes_back_bit_for_bit(tmp_path):
    save(tmp_path, 7)
    loaded, progress = load(tmp_path)
    assert progress == {"epoch": 7}
    assert sha256(loaded) == sha256(parts(7)) != sha256(parts(8))
    assert jax.tree.structure(loaded) == jax.tree.structure(parts(7))
    assert [a.dtype for a in jax.tree.leaves(loaded)] == [a.dtype for a in jax.tree.leaves(parts(7))]


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
def test_random_keys_draw_on_as_they_would_have(tmp_path, kind):
    key = jax.random.split(jax.random.key(3, impl=kind), 2)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, {"key": key}, {})
        loaded, _ = checkpoints.load({"key": jax.random.split(jax.random.key(0, impl=kind), 2)})
    assert loaded["key"].dtype == key.dtype
    draw = lambda key: jax.random.normal(key[1], 5)
    np.testing.assert_array_equal(draw(loaded["key"]), draw(key))


def test_nothing_is_loaded_where_nothing_was_saved(tmp_path):
    assert load(tmp_path) is None


def test_the_last_and_the_best_are_kept(tmp_path):
    scores = {1: 0.2, 2: 0.9, 3: 0.9, 4: 0.1, 5: 0.3, 6: None}
    assert save(tmp_path, *scores, scores=scores) == [3, 5, 6]
    assert load_parts(tmp_path, {"step": jnp.int32(0)}, best=True)["step"] == 3
    assert load_parts(tmp_path, {"step": jnp.int32(0)})["step"] == 6
    # Across runs of the program too.
    assert save(tmp_path, 7, 8, scores={7: 0.95, 8: 0.5}) == [7, 8]
    assert save(tmp_path, 9, keep=1) == [7, 9]
    with pytest.raises(ValueError, match="keep must be >= 1, got 0"):
        Checkpoints(tmp_path, keep=0)


def test_what_is_saved_is_what_there_was_when_it_was_asked_for(tmp_path):
    """It is written in the background, while the arrays are given away to the next update."""
    state = {"w": jnp.arange(1000.0)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        donated = jax.jit(lambda s: {"w": -s["w"]}, donate_argnums=0)(state)
        assert state["w"].is_deleted() and donated["w"][1] == -1
        with pytest.raises(ValueError, match="number must be above 1, that of the last, got 1"):
            checkpoints.save(1, donated, {})
    like = {"w": jax.ShapeDtypeStruct((1000,), jnp.float32)}
    np.testing.assert_array_equal(load_parts(tmp_path, like)["w"], np.arange(1000.0))


def test_what_was_not_finished_is_no_checkpoint(tmp_path):
    save(tmp_path, 1)
    # As a kill leaves it: everything is written, but for its name.
    shutil.copytree(tmp_path / CHECKPOINTS / "1", tmp_path / CHECKPOINTS / "2.orbax-checkpoint-tmp")
    assert load(tmp_path)[1] == {"epoch": 1}
    assert [p.name for p in (tmp_path / CHECKPOINTS).iterdir()] == ["1"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_is_not_finite_is_not_saved(tmp_path, value, dtype):
    save(tmp_path, 1)
    bad = parts(2)
    bad["params"]["b"] = jnp.asarray([0, value, 1], dtype)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(FloatingPointError, match=r"params\['b'\] is not finite; checkpoint 2 was not"):
            checkpoints.save(2, bad, {})
        with pytest.raises(FloatingPointError, match="score is nan; checkpoint 2 was not saved"):
            checkpoints.save(2, parts(2), {}, score=float("nan"))
    assert load(tmp_path)[1] == {"epoch": 1}


# How files get damaged.
KINDS = {
    "flipped": lambda path: change(path, lambda old: old[: len(old) // 2] + flip(old[len(old) // 2 :])),
    "truncated": lambda path: change(path, lambda old: old[: len(old) // 2]),
    "emptied": lambda path: change(path, lambda old: b""),
    "zeros": lambda path: change(path, lambda old: bytes(len(old))),
    "deleted": Path.unlink,
}


def flip(old):
    return bytes([old[0] ^ 1]) + old[1:] if old else b""


def change(path, function):
    path.write_bytes(function(path.read_bytes()))


def edit(part, value):
    """Changes an entry of what is saved beside the arrays, in a file that is well formed afterwards."""

    def damage(checkpoint):
        path = checkpoint / "_CHECKPOINT_METADATA"
        content = json.loads(path.read_text())
        content["custom_metadata"][part] = value
        path.write_text(json.dumps(content))

    return damage


def values(checkpoint):
    """The file that holds the values of the largest array."""
    return max((checkpoint / "params").rglob("d/*"), key=lambda path: path.stat().st_size)


DAMAGE = {
    **{
        f"{kind} {name}": lambda checkpoint, find=find, damage=damage: damage(find(checkpoint))
        for kind, damage in KINDS.items()
        for name, find in {
            "values": values,
            "manifest": lambda checkpoint: checkpoint / "params" / "manifest.ocdbt",
            "index": lambda checkpoint: next((checkpoint / "params" / "d").iterdir()),
            "forms of the arrays": lambda checkpoint: checkpoint / "params" / "_METADATA",
            "metadata": lambda checkpoint: checkpoint / "_CHECKPOINT_METADATA",
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


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with two checkpoints."""
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, 1, 2)
    return workdir


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
        (tmp_path / CHECKPOINTS / "2" / "_CHECKPOINT_METADATA").unlink()
        with pytest.warns(UserWarning, match="checkpoint 2 is damaged"):
            load(tmp_path)
    assert sorted(p.name for p in (tmp_path / DAMAGED).iterdir()) == ["2", "2_2"]


def test_a_damaged_one_is_not_taken_for_the_best(tmp_path):
    scores = {1: 0.9, 2: 0.1, 3: 0.2, 4: 0.3}
    save(tmp_path, 1, 2, scores=scores)
    edit("score", 2.0)(tmp_path / CHECKPOINTS / "1")
    with pytest.warns(UserWarning, match=r"checkpoint 1 is damaged \(the checksum of"):
        assert save(tmp_path, 3, 4, scores=scores) == [3, 4]


OTHER = {
    "shape": (
        lambda p: p["params"].update(w=jnp.zeros((40, 51))),
        "params['w'] is float32[40, 50], expected",
    ),
    "type": (lambda p: p["params"].update(b=jnp.zeros(3)), "params['b'] is bfloat16[3], expected float32[3]"),
    "more": (lambda p: p["params"].update(c=jnp.zeros(1)), "params['c'] is not in it, expected float32[1]"),
    "less": (lambda p: p["params"].pop("b"), "params['b'] is bfloat16[3], expected no such array"),
    "another part": (
        lambda p: p.update(loss_scale=jnp.ones(())),
        "loss_scale is not in it, expected float32",
    ),
}


@pytest.mark.parametrize("which", OTHER)
def test_the_checkpoint_of_another_network(tmp_path, saved, which):
    workdir = shutil.copytree(saved, tmp_path / "run")
    change_like, message = OTHER[which]
    like = parts(0)
    change_like(like)
    for read in (load, load_parts):
        with pytest.raises(ValueError, match="checkpoint 2 in .* does not fit: " + re.escape(message)):
            read(workdir, like)
    assert not (workdir / DAMAGED).exists()
    assert load(workdir)[1] == {"epoch": 2}


def test_parts_for_a_run_of_its_own(tmp_path, saved):
    like = jax.eval_shape(lambda: {"params": parts(0)["params"]})
    same = lambda loaded, n: sha256(loaded) == sha256({"params": parts(n)["params"]})
    assert same(load_parts(saved, like), 2)
    assert same(load_parts(saved / CHECKPOINTS / "1", like), 1)
    for folder, best, message in (
        (tmp_path / "no", False, "no holds no checkpoints"),
        (saved / CHECKPOINTS / "3", False, r"there is no such checkpoint among \[1, 2\]"),
        (saved, True, r"there is no checkpoint with a score among \[1, 2\]"),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            load_parts(folder, like, best=best)
    workdir = shutil.copytree(saved, tmp_path / "run")
    KINDS["truncated"](values(workdir / CHECKPOINTS / "2"))
    with pytest.raises(ValueError, match=r"checkpoint 2 in .* is damaged: "):
        load_parts(workdir, like)
    assert same(load_parts(workdir / CHECKPOINTS / "1", like), 1)
    edit("score", 1.0)(workdir / CHECKPOINTS / "1")
    with pytest.raises(ValueError, match=r"checkpoint 1 in .* is damaged: the checksum of _CHECK"):
        load_parts(workdir, like, best=True)


@pytest.fixture
def full_disk():
    """No file can grow beyond 16 KiB: the kernel refuses the write, as that of a full disk does."""
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN  # so that the write fails, and not the program
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**14, limits[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_earlier_checkpoints(tmp_path, full_disk):
    large = {"w": jnp.asarray(np.random.default_rng(0).normal(size=20_000), jnp.float32)}
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(OSError, match=r"checkpoint 1 could not be written to .*There is no earlier one"):
            checkpoints.save(1, large, {})
            checkpoints.wait()
        checkpoints.save(2, {"w": large["w"][:100]}, {"epoch": 2})
        with pytest.raises(OSError, match=r"checkpoint 3 could not be written .*are intact: 2$") as caught:
            checkpoints.save(3, large, {})
            checkpoints.wait()
        assert "File too large" in str(caught.value)
        # What was written of it is gone, so that it does not fill the disk.
        assert [p.name for p in (tmp_path / CHECKPOINTS).iterdir()] == ["2"]
        full_disk()  # there is room again
        checkpoints.save(3, large, {"epoch": 3})
    np.testing.assert_array_equal(load(tmp_path, large)[0]["w"], large["w"])
    assert checkpoints.numbers == [2, 3]


def test_checksum_sees_every_bit_and_form():
    tree = {"a": jnp.zeros(3), "b": jax.random.key(0)}
    for other in (
        {**tree, "a": jnp.asarray([0.0, -0.0, 0.0])},
        {**tree, "a": jnp.zeros((3, 1))},
        {**tree, "a": jnp.zeros(3, jnp.int32)},
        {**tree, "b": jax.random.key(1)},
        {"a": tree["a"], "c": tree["b"]},
    ):
        assert sha256(other) != sha256(tree)
    assert sha256({**tree, "a": np.zeros(3, np.float32)}) == sha256(tree)
    assert training.sha256 is sha256
