import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import temporal_limits
from plots.temporal import plot_taus
from tests.common.scripts import call

from sltt_jax import rules


def test_without_a_temporal_gradient_the_cue_gets_none(monkeypatch, tmp_path, capsys):
    quick = ("--tasks", "recall", "--delays", 1, "--taus", 2, 8, "--seeds", 2, "--updates", 3)
    args = (*quick, "--units", 12, "--workdir", tmp_path)
    assert call(temporal_limits, monkeypatch, *args) == 0
    path = tmp_path / "temporal_limits.json"
    rows = json.loads(path.read_text())["rows"]
    assert [row["rule"] for row in rows] == ["bptt"] * 2 + ["tbptt(2)"] * 2 + ["sltt"] * 2
    assert all(len(row[k]) == 2 for row in rows for k in ("accuracy", "cosine", "cue_gradient"))
    for row in rows:
        assert row["T"] == 3 and min(row["firing_rate"]) > 0.01
        # The window of two steps does not reach from the answer back to the cue.
        exact = row["rule"] == "bptt"
        assert (max(row["cue_gradient"]) > 0) == exact
        assert (min(row["cosine"]) > 0.9999) == exact
    assert (tmp_path / "recall.png").read_bytes().startswith(b"\x89PNG")
    plot_taus([{**row, "delay": None} for row in rows], tmp_path / "taus.png", title="recall")
    assert (tmp_path / "taus.png").read_bytes().startswith(b"\x89PNG")
    # Once more: nothing is left to do; other settings are refused.
    before = path.stat().st_mtime_ns
    assert call(temporal_limits, monkeypatch, *args) == 0
    assert path.stat().st_mtime_ns == before
    assert call(temporal_limits, monkeypatch, *args, "--updates", 4) == 1
    assert "choose another --workdir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"taus": (1.0,)}, "taus must be numbers > 1"),
        ({"delays": (-1,)}, "delays must be numbers >= 0"),
        ({"seeds": 0}, "seeds must be >= 1, got 0"),
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


def test_horizon_and_cosine():
    assert temporal_limits.horizon(2.0) == pytest.approx(np.log(0.01) / np.log(0.5))
    a, b = {"w": jnp.asarray([3.0, 0.0])}, {"w": jnp.asarray([3.0, 4.0])}
    assert temporal_limits.cosine(a, b) == pytest.approx(0.6)
    assert temporal_limits.cosine(a, {"w": jnp.zeros(2)}) == 0


def test_the_loss_is_of_the_steps_that_are_asked():
    """Its gradient to the readout, by hand: what is not asked does not count."""
    key = jax.random.key(0)
    x = jax.random.normal(key, (5, 3, 4))
    y = jnp.asarray([0, 1, 1, 0, 1])
    params = temporal_limits.init(key, x, 6, 2)
    gradients = []
    for asked in ([True, True, True], [False, False, True]):
        samples = temporal_limits.Samples(x, y, jnp.asarray(asked))
        grads, outputs = temporal_limits.gradient(rules.sltt(), params, 2.0, samples)
        gradients.append(grads[-1])
        assert outputs.shape == (5, 2)
    assert float(jnp.abs(gradients[0] - gradients[1]).max()) > 1e-3
