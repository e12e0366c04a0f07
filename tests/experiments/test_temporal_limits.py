import json
import math
from functools import partial

import jax
import jax.numpy as jnp
import pytest
import temporal_limits
from plots.temporal import plot_taus

from sltt_jax import bptt, sltt
from tests.common.scripts import assert_picture, call

pytestmark = pytest.mark.usefixtures("quick_compile")

QUICK = ("--tasks", "recall", "--delays", 1, "--taus", 2, 8, "--seeds", 2, "--updates", 3, "--units", 12)


@pytest.mark.slow
def test_without_a_temporal_gradient_the_cue_gets_none(monkeypatch, tmp_path):
    assert call(temporal_limits, monkeypatch, *QUICK, "--workdir", tmp_path) == 0
    rows = json.loads((tmp_path / "temporal_limits.json").read_text())["rows"]
    assert [row["rule"] for row in rows] == ["bptt"] * 2 + ["tbptt(2)"] * 2 + ["sltt"] * 2
    assert all(len(row[k]) == 2 for row in rows for k in ("accuracy", "cosine", "cue_gradient"))
    for row in rows:
        assert row["T"] == 3 and min(row["firing_rate"]) > 0.01
        assert row["horizon"] == pytest.approx(math.log(0.01) / math.log(1 - 1 / row["tau"]))
        # The window of two steps does not reach from the answer back to the cue.
        exact = row["rule"] == "bptt"
        assert (max(row["cue_gradient"]) > 0) == exact
        assert (min(row["cosine"]) > 0.9999) == exact


def test_what_is_done_is_not_done_again(monkeypatch, tmp_path, capsys):
    """With made-up figures in place of the training."""
    jobs = []

    def measure(settings, task, delay, rule):
        jobs.append((task, delay, rule))
        figures = {"accuracy": [0.5, 0.7], "cosine": [0.1, 0.3], "cue_gradient": [0.0, 2.0]}
        row = {"task": task, "delay": delay, "rule": rule, "horizon": 7.0, "without_memory": 0.25, **figures}
        return [{**row, "tau": tau} for tau in settings.taus]

    monkeypatch.setattr(temporal_limits, "measure", measure)
    args = (*QUICK, "--workdir", tmp_path)
    assert call(temporal_limits, monkeypatch, *args) == 0
    assert jobs == [("recall", 1, rule) for rule in ("bptt", "tbptt(2)", "sltt")]
    line = (
        "recall  delay 1     tau 2     sltt      accuracy 0.600 +- 0.100  cosine 0.200  cue gradient 2.0e+00"
    )
    assert line in capsys.readouterr().out.splitlines()
    path = tmp_path / "temporal_limits.json"
    rows = json.loads(path.read_text())["rows"]
    assert_picture(tmp_path / "recall.png")
    plot_taus([{**row, "delay": None} for row in rows], tmp_path / "taus.png", title="recall")
    assert_picture(tmp_path / "taus.png")
    # Once more: nothing is left to do; other settings are refused.
    assert call(temporal_limits, monkeypatch, *args) == 0
    assert len(jobs) == 3
    assert call(temporal_limits, monkeypatch, *args, "--updates", 4) == 1
    assert "choose another --workdir" in capsys.readouterr().err
    # Where all steps have input there is no cue, and nothing is said of its gradient.
    rows_of_digits = ("--tasks", "digits", *QUICK[2:], "--workdir", tmp_path / "digits")
    assert call(temporal_limits, monkeypatch, *rows_of_digits) == 0
    printed = capsys.readouterr().out
    assert "digits  delay None  tau 2     sltt" in printed and "cue" not in printed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rules": ("eprop",)}, "a rule is one of bptt"),
        ({"taus": (1.0,)}, "taus must be numbers > 1"),
        ({"delays": (-1,)}, "delays must be numbers in 0..1000000"),
        ({"learning_rate": 0.0}, "learning_rate must be a number > 0, got 0.0"),
        ({"learning_rate": math.nan}, "learning_rate must be a number > 0, got nan"),
        ({"seeds": 0}, "seeds must be in 1..1000000, got 0"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        temporal_limits.Limits(**settings)


def test_windows_that_reach_over_the_whole_task_are_left_out():
    found = list(temporal_limits.jobs(temporal_limits.Limits(tasks=("xor", "digits"), delays=(0, 3))))
    expected = [("xor", 0, r) for r in ("bptt", "sltt")]
    expected += [("xor", 3, r) for r in ("bptt", "tbptt(4)", "tbptt(2)", "sltt")]
    expected += [("digits", None, r) for r in ("bptt", "tbptt(4)", "tbptt(2)", "sltt")]
    assert found == expected


def test_cosine():
    a, b = {"w": jnp.asarray([3.0, 0.0])}, {"w": jnp.asarray([3.0, 4.0])}
    zero, cosine = {"w": jnp.zeros(2)}, jax.jit(temporal_limits.cosine)
    assert cosine(a, b) == pytest.approx(0.6)
    assert cosine(a, zero) == 0 == cosine(zero, a)


@pytest.fixture(scope="module")
def gradients():
    """Builds, by rule, the compiled gradient of a network of 4 inputs, 6 units and 2 classes."""
    return {rule: jax.jit(partial(temporal_limits.gradient, rule)) for rule in (sltt(), bptt())}


@pytest.mark.slow
def test_the_loss_is_of_the_steps_that_are_asked(gradients):
    """The gradient to the readout changes with them: what is not asked does not count."""
    x = jax.random.normal(jax.random.key(0), (5, 3, 4))
    y = jnp.asarray([0, 1, 1, 0, 1])
    params = temporal_limits.init(jax.random.key(0), x, 6, 2)
    readout = []
    for asked in ([True, True, True], [False, False, True]):
        grads, outputs = gradients[sltt()](params, 2.0, temporal_limits.Samples(x, y, jnp.asarray(asked)))
        readout.append(grads[-1])
        assert outputs.shape == (5, 2)
    assert float(jnp.abs(readout[0] - readout[1]).max()) > 1e-3


@pytest.mark.slow
def test_lateral_weights_learn(gradients):
    """Under both rules, and they are a path over time that sltt does not see."""
    x = jax.random.normal(jax.random.key(0), (5, 8, 4))
    samples = temporal_limits.Samples(x, jnp.asarray([0, 1, 1, 0, 1]), jnp.ones(8, bool))
    params = temporal_limits.init(jax.random.key(0), x, 16, 2, lateral=True)
    cut, exact = (gradients[rule](params, 2.0, samples)[0] for rule in (sltt(), bptt()))
    for a, b in zip(cut[3:], exact[3:], strict=True):
        assert float(jnp.abs(a).max()) > 1e-4 and float(jnp.abs(a - b).max()) > 0.05 * float(jnp.abs(b).max())


@pytest.mark.slow
def test_a_cue_at_the_first_step_gets_a_gradient_from_bptt_alone(gradients):
    """Inputs 0 and 1 are there at the first step, 2 and 3 at the last, which is asked."""
    x = jnp.zeros((5, 3, 4)).at[:, 0, :2].set(3.0).at[:, 2, 2:].set(3.0)
    samples = temporal_limits.Samples(x, jnp.asarray([0, 1, 1, 0, 1]), jnp.asarray([False, False, True]))
    params = temporal_limits.init(jax.random.key(0), x, 6, 2)
    first = {rule: gradients[rule](params, 2.0, samples)[0][0] for rule in gradients}
    assert float(jnp.abs(first[sltt()][:2]).max()) == 0 < float(jnp.abs(first[bptt()][:2]).max())
    assert all(float(jnp.abs(grads[2:]).max()) > 0 for grads in first.values())
