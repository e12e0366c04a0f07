"""Epochs of training: what they yield, and that an interruption leaves no trace."""

import contextlib
import functools
import os
import shutil
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sltt_jax import data, losses, training
from sltt_jax.data import encoders
from sltt_jax.models import MLP
from sltt_jax.neurons import Neuron
from sltt_jax.rules import bptt, sltt_k

LOSS = losses.classification(mse_weight=0.05)
T = 3


@functools.cache
def tiny():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int32)
    return data.ArrayData(x[:30], y[:30], x[30:], y[30:], classes=2)


@functools.cache
def compiled_for(rule, lr):
    """An initial state, and the compiled update and evaluation; the state is not to be donated itself."""
    model = MLP((12,), classes=2, neuron=Neuron(tau=1.5), dropout=0.1)
    optimizer = training.make_optimizer("sgd", lr)
    encode = encoders.direct(T, augmentation=lambda key, x: x + 0.01 * jax.random.normal(key, x.shape))
    init = jax.jit(training.init_state, static_argnums=(0, 1, 2))
    state = init(model, optimizer, encode, jax.random.key(0), jnp.asarray(tiny().train_x[:5]))
    update = jax.jit(training.make_update(model, rule, LOSS, optimizer, encode), donate_argnums=0)
    return state, update, jax.jit(training.make_evaluate(model, LOSS, encoders.direct(T)))


def fit(
    workdir, epochs=3, rule=sltt_k(1), lr=0.1, stop_after=None, save_every=None, samples=30, batch_size=5,  # noqa: B008
    devices=1, before_update=lambda n: None, metrics_of=lambda n, metrics: metrics,
    score=None, held_out="test",
):  # fmt: skip
    """Records of the epochs, and the parameters after every update."""
    arrays, (start, update, evaluate) = tiny(), compiled_for(rule, lr)
    start = training.replicate(jax.tree.map(jnp.copy, start), jax.devices()[:devices])
    params = []

    def watched(state, batch):
        if len(params) == stop_after:
            raise KeyboardInterrupt
        before_update(len(params))
        state, metrics = update(state, batch)
        params.append(jax.device_get(state.params))
        return state, metrics_of(len(params), metrics)

    workdir.mkdir(exist_ok=True)
    records = []
    with contextlib.suppress(KeyboardInterrupt), training.Checkpoints(workdir) as checkpoints:
        records.extend(
            training.train_epochs(
                start, watched, evaluate,
                data.Prefetch(
                    data.ArrayBatches(arrays.train_x[:samples], arrays.train_y[:samples], batch_size, seed=0)
                ),
                {held_out: lambda: data.padded_batches(arrays.test_x, arrays.test_y, 5)},
                epochs=epochs, checkpoints=checkpoints, workdir=workdir, save_every=save_every,
                score=score,
            )
        )  # fmt: skip
    return records, params


def test_training_learns_and_writes_what_it_yields(tmp_path):
    began = time.perf_counter()
    records, params = fit(tmp_path, epochs=12)
    took = time.perf_counter() - began
    assert len(params) == 12 * 6 and [r["epoch"] for r in records] == list(range(1, 13))
    assert records[-1]["train_loss"] < 0.6 * records[0]["train_loss"]
    assert records[-1]["train_accuracy"] >= 0.8 and records[-1]["test_accuracy"] >= 0.7
    assert training.read_metrics(tmp_path) == records
    # What the parts took is what an epoch took, and all epochs take no longer than the run.
    for r in records:
        parts = r["data_seconds"] + r["update_seconds"] + r["evaluation_seconds"]
        assert parts == pytest.approx(r["seconds"])
        assert r["samples_per_second"] == pytest.approx(30 / (r["data_seconds"] + r["update_seconds"]))
        assert 0 < r["seconds_per_update"] < r["seconds"]
    assert sum(r["seconds"] for r in records) < took


def untimed(records):
    """Records without what a clock gave."""
    timed = ("seconds", "per_second", "per_update")
    return [{k: v for k, v in r.items() if not k.endswith(timed)} for r in records]


@pytest.mark.parametrize(
    ("save_every", "again"),
    [
        pytest.param(None, [2, 3], id="from the border of an epoch", marks=pytest.mark.slow),
        pytest.param(2, [2, 3], id="from the middle of an epoch"),
    ],
)
def test_interrupted_and_resumed_is_as_if_never_stopped(tmp_path, save_every, again):
    whole, params = fit(tmp_path / "whole")
    before, _ = fit(tmp_path / "parts", stop_after=9, save_every=save_every)  # in the second epoch
    assert len(before) == 1
    after, resumed = fit(tmp_path / "parts")
    assert [r["epoch"] for r in after] == again
    # Six updates an epoch: what was saved last came after 6 or after 8 updates.
    assert len(resumed) == 18 - (8 if save_every else 6)
    chex.assert_trees_all_equal(resumed[-1], params[-1])
    assert untimed(training.read_metrics(tmp_path / "parts")) == untimed(whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The workdir of a run that nothing happened to, to be read only, its records and last parameters."""
    workdir = tmp_path_factory.mktemp("whole")
    records, params = fit(workdir)
    return workdir, untimed(records), params[-1]


DAMAGE = {
    "torn": lambda lines: lines[0] + lines[1][:40],
    "torn in a character": lambda lines: lines[0] + b'{"epoch\xc3',
    "blank": lambda lines: lines[0] + b"\n" + lines[1],
    "zeros": lambda lines: bytes(100) + b"\n" + lines[1],
    "empty": lambda lines: b"",
}


@pytest.mark.parametrize("damage", [*DAMAGE, "gone"])
def test_damaged_metrics_are_reported_and_repaired(tmp_path, whole, damage):
    _, records, params = whole
    fit(tmp_path, stop_after=13)  # two epochs
    path = tmp_path / training.METRICS_FILE
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(DAMAGE[damage](path.read_bytes().splitlines(keepends=True)))
    if damage not in ("gone", "empty"):
        with pytest.warns(UserWarning, match=f"{path}: damaged and left out: line [12]"):
            left = training.read_metrics(tmp_path)
        assert [r["epoch"] for r in left] == {"blank": [1, 2], "zeros": [2]}.get(damage, [1])
    after, resumed = fit(tmp_path)
    assert [r["epoch"] for r in after] == [3]
    chex.assert_trees_all_equal(resumed[-1], params)
    assert untimed(training.read_metrics(tmp_path)) == records


def test_a_full_disk_in_a_line_of_metrics(tmp_path, whole):
    _, records, params = whole
    path = tmp_path / training.METRICS_FILE

    def fill(updates):
        if updates == 8:  # in the second epoch
            path.unlink()
            path.symlink_to("/dev/full")

    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        fit(tmp_path, before_update=fill)
    after, resumed = fit(tmp_path)
    assert [r["epoch"] for r in after] == [2, 3]
    chex.assert_trees_all_equal(resumed[-1], params)
    assert untimed(training.read_metrics(tmp_path)) == records


def test_a_file_is_the_old_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    training.write_text(path, "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        training.write_text(path, "new")
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("other", [{"batch_size": 6}, {"samples": 29, "batch_size": 5}, {"samples": 25}])
def test_other_batches_are_refused(tmp_path, other):
    """29 samples give fewer updates an epoch; 30 in batches of 6 as many, but others."""
    fit(tmp_path, stop_after=7)
    before = (tmp_path / training.METRICS_FILE).read_text()
    with pytest.raises(ValueError, match=r"'samples': 30, 'batch_size': 5.* is no position in batches of "):
        fit(tmp_path, **other)
    assert (tmp_path / training.METRICS_FILE).read_text() == before


def test_another_number_of_devices_is_said(tmp_path):
    fit(tmp_path, epochs=1)
    message = f"{tmp_path}: trained on 1 devices so far, now on 2: results will not be"
    with pytest.warns(UserWarning, match=message):
        assert fit(tmp_path, epochs=1, devices=2) == ([], [])


def test_metrics_without_checkpoints_are_not_added_to(tmp_path):
    fit(tmp_path, epochs=1)
    before = (tmp_path / training.METRICS_FILE).read_text()
    shutil.rmtree(tmp_path / training.CHECKPOINTS)
    with pytest.raises(ValueError, match=f"{training.METRICS_FILE} is of a run whose checkpoints are gone"):
        fit(tmp_path, epochs=2)
    assert (tmp_path / training.METRICS_FILE).read_text() == before


@pytest.mark.parametrize("score", ["nope", "accuracy", "validation_accuracy"])
def test_a_score_that_no_record_can_have_is_known_before_the_first_update(tmp_path, score):
    params = []
    with pytest.raises(ValueError, match=rf"score must be .*, train_... or test_...; got '{score}'"):
        fit(tmp_path, before_update=params.append, score=score)
    assert not params and not (tmp_path / training.METRICS_FILE).exists()


@pytest.mark.parametrize("score", ["test_nope", "test_accuracy_per_step"])
def test_a_score_that_the_records_do_not_have_loses_nothing(tmp_path, score):
    """The same score is refused again, and another one goes on from there."""
    updates = []
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"one of .*, test_accuracy, .*; got '{score}'"):
            fit(tmp_path / "parts", before_update=updates.append, score=score)
    assert training.read_metrics(tmp_path / "parts") == []
    found, _ = fit(tmp_path / "parts", before_update=updates.append, score="test_accuracy")
    assert len(updates) == 3 * 6
    assert untimed(found) == untimed(fit(tmp_path / "whole", score="test_accuracy")[0])


def test_what_is_held_out_is_not_named_train(tmp_path):
    with pytest.raises(ValueError, match='what is held out cannot be named "train"'):
        fit(tmp_path, held_out="train")


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_one_number_that_is_not_finite_stops(tmp_path, name):
    """A loss alone is so where float16 overflows, whose update is left out: its gradient counts as 0."""
    bad = {"grad_norm": 0.0, name: np.nan}
    with pytest.raises(FloatingPointError, match=f"^{name} is nan in update 3 of epoch 2: "):
        fit(tmp_path, metrics_of=lambda n, metrics: metrics._replace(**bad) if n == 9 else metrics)
    assert [r["epoch"] for r in training.read_metrics(tmp_path)] == [1]


def test_divergence_stops_and_keeps_the_last_good_state(tmp_path):
    with pytest.raises(
        FloatingPointError,
        match=r"(loss|grad_norm) is (nan|inf) in update \d of epoch 1: .*last good state is",
    ):
        fit(tmp_path, lr=1e30, rule=bptt())
    assert training.read_metrics(tmp_path) == []
    assert (tmp_path / training.CHECKPOINTS / "0").is_dir()
    # Training resumes from it with a learning rate that works.
    records, _ = fit(tmp_path)
    assert [r["epoch"] for r in records] == [1, 2, 3]


def test_a_checkpoint_from_before_metrics_had_names_is_resumed(tmp_path):
    """Within an epoch it held the sum of the accuracies over updates."""
    whole, _ = fit(tmp_path / "whole", epochs=2)
    fit(tmp_path / "old", epochs=2, save_every=2, stop_after=4)
    state, _, _ = compiled_for(sltt_k(1), 0.1)
    with training.Checkpoints(tmp_path / "old") as checkpoints:
        parts, progress = checkpoints.load(state._asdict())
        total, count = progress["epoch"].pop("values")["accuracy"]
        assert count == progress["epoch"]["updates"] == 4
        progress["epoch"]["accuracy"] = total
        checkpoints.save(5, parts, progress)
    again, _ = fit(tmp_path / "old", epochs=2)
    for record, other in zip(again, whole, strict=True):
        for name in ("train_loss", "train_accuracy", "test_loss", "test_accuracy"):
            assert record[name] == other[name]
