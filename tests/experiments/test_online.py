"""Updates at every block in the training of a run."""

import json

import jax
import online
import pytest
from common.runs import Run, build

from tests.common.nets import assert_close, difference
from tests.common.scripts import assert_refused, call

pytestmark = pytest.mark.usefixtures("quick_compile")

FEW = {"features": (8,), "T": 2, "train_samples": 64, "test_samples": 32, "batch_size": 32}


@pytest.mark.slow
def test_an_update_of_one_block_is_that_of_a_batch():
    def after_one_batch(rule, change):
        experiment = change(build(Run.of("digits_mlp", rule=rule, **FEW)))
        state = experiment.initial_state(jax.random.key(0))
        state, metrics = jax.jit(experiment.update())(state, experiment.data.batch)
        return state.params, metrics.loss, metrics.values

    whole = after_one_batch("sltt(2)", lambda experiment: experiment)
    assert_close(after_one_batch("sltt(2)", online.at_every_block), whole, 1e-5)
    # The control: two blocks are two updates.
    assert max(difference(after_one_batch("sltt", online.at_every_block)[0], whole[0]).values()) > 1e-4


@pytest.mark.slow
def test_script(monkeypatch, tmp_path, capsys):
    few = {**FEW, "features": 8, "epochs": 1, "seeds": 2}
    args = [word for name, value in few.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert call(online, monkeypatch, "digits_mlp", *args, "--workdir", tmp_path) == 0
    rows = json.loads((tmp_path / "online.json").read_text())["rows"]
    assert [row["update"] for row in rows] == ["after every block", "once a batch"]
    assert rows[0]["train_loss"] != rows[1]["train_loss"]
    assert (tmp_path / "online.md").read_text() in capsys.readouterr().out


@pytest.mark.parametrize("rule", ["bptt", "sltt(4)"])
def test_rules_that_are_refused(rule, monkeypatch, tmp_path, capsys):
    message = f"rule must go through T=6 steps in whole blocks, got {rule}"
    assert_refused(online, ("digits", "--rule", rule), message, tmp_path / "new", monkeypatch, capsys)
