"""Checkpoints: what is kept, and what comes back."""

import math
import re
import resource
import shutil
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax.neurons import Neuron
from sltt_jax.surrogate import sigmoid
from sltt_jax.training import CHECKPOINTS, DAMAGED, Checkpoints, load_parts, sha256
from tests.common.checkpoints import load, parts, save


def test_every_part_comes_back_bit_for_bit(tmp_path):
    save(tmp_path, 7)
    loaded, progress = load(tmp_path)
    assert progress == {"epoch": 7}
    # Keys of random numbers are compared by what they hold.
    plain = lambda parts: parts | {"key": jax.random.key_data(parts["key"])}
    chex.assert_trees_all_equal(plain(loaded), plain(parts(7)))
    chex.assert_trees_all_equal_shapes_and_dtypes(loaded, parts(7))
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(plain(loaded), plain(parts(8)))


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
    """It is written in the background, while the arrays are given away to the next update.

    Whether they are there for it by then is XLA's to say: it takes none that is being read.
    """
    give_away = jax.jit(lambda s: {"w": -s["w"]}, donate_argnums=0)
    spare, state = ({"w": jnp.arange(1000.0)} for _ in range(2))
    assert give_away(spare)["w"][1] == -1 and spare["w"].is_deleted()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        donated = give_away(state)
        assert donated["w"][1] == -1
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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_nan_is_not_saved_and_infinity_is(tmp_path, dtype):
    save(tmp_path, 1)
    bad, infinite = parts(2), {"mask": jnp.asarray([-jnp.inf, 0, jnp.inf], dtype)}
    bad["params"]["b"] = jnp.asarray([0, jnp.nan, 1], dtype)
    (tmp_path / "infinite").mkdir()
    with Checkpoints(tmp_path / "infinite") as checkpoints:
        checkpoints.save(1, infinite, {}, score=-math.inf)
        loaded, _ = checkpoints.load(infinite)
    np.testing.assert_array_equal(loaded["mask"], infinite["mask"])
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(FloatingPointError, match=r"params\['b'\] holds NaN; checkpoint 2 was not"):
            checkpoints.save(2, bad, {})
        with pytest.raises(FloatingPointError, match="score is nan; checkpoint 2 was not saved"):
            checkpoints.save(2, parts(2), {}, score=float("nan"))
    assert load(tmp_path)[1] == {"epoch": 1}


def test_numbers_of_python_and_nodes_of_any_kind(tmp_path):
    """A schedule's best loss so far is infinite, and a network may have its neurons among its parameters."""
    neurons = Neuron(tau=jnp.asarray([1.5, 2.0]), v_threshold=0.5, surrogate=sigmoid())
    tree = {"best": math.inf, "count": 3, "wait": True, "layers": [neurons, (Neuron(tau=7),)]}
    like = jax.tree.map(lambda leaf: type(leaf)(1) if isinstance(leaf, int | float) else 0 * leaf, tree)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": tree}, {})
        loaded = checkpoints.load({"a": like})[0]["a"]
        with pytest.raises(ValueError, match=r"a\['count'\] is int, expected float"):
            checkpoints.load({"a": like | {"count": 3.0}})
        with pytest.raises(TypeError, match=r"a\['name'\] must be an array or a number, got 'x'"):
            checkpoints.save(2, {"a": {"name": "x"}}, {})
    chex.assert_trees_all_equal(loaded, tree)
    assert [type(loaded[name]) for name in ("best", "count", "wait")] == [float, int, bool]


def test_one_run_at_a_time(tmp_path):
    (tmp_path / ".lock").write_text("left by a run that is long gone")
    with Checkpoints(tmp_path) as first:
        first.save(1, parts(1), {})
        with (
            pytest.raises(BlockingIOError, match=f"{tmp_path} is in use by another run"),
            Checkpoints(tmp_path),
        ):
            pass
    assert save(tmp_path, 2) == [1, 2]


def test_a_workdir_that_is_removed_under_a_run(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    with pytest.raises(FileNotFoundError, match=f"is gone: {workdir} was removed"):
        with Checkpoints(workdir) as checkpoints:
            checkpoints.save(1, parts(1), {})
            checkpoints.wait()
            shutil.rmtree(workdir)
            workdir.mkdir()  # by another run
            checkpoints.save(2, parts(2), {})
    assert [*workdir.iterdir()] == []


def test_cleared_of_checkpoints_and_of_nothing_else(tmp_path):
    save(tmp_path, 1, 2)
    others = [tmp_path / CHECKPOINTS / "notes", tmp_path / DAMAGED / "notes", tmp_path / CHECKPOINTS / "01"]
    (tmp_path / DAMAGED / "7_2").mkdir(parents=True)
    for path in others:
        path.write_text("mine")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.clear()
        assert checkpoints.numbers == [] and all(path.read_text() == "mine" for path in others)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.name[0] != ".") == [
        "01", CHECKPOINTS, DAMAGED, "notes", "notes"
    ]  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with two checkpoints."""
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, 1, 2)
    return workdir


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
