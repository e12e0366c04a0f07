"""How far the gradients are apart, as gradient_agreement.py follows it through training."""

import json
import math

import gradient_agreement
import pytest
from common import sweeps

from sltt_jax.analysis import horizon
from tests.common.own_data import HEAD
from tests.common.scripts import QUICK, assert_picture, assert_refused, call

pytestmark = pytest.mark.usefixtures("quick_compile")

NET = (*QUICK, "--rule", "sltt", "--train-samples", 128)


def run(monkeypatch, workdir, *args):
    settings = ("--rules", "sltt", "sltt_k(1)", "tbptt(3)", "--steps", 2, 4, "--batches", 2, "--tau", 2)
    return call(gradient_agreement, monkeypatch, *NET, *settings, *args, "--workdir", workdir)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_figures(monkeypatch, tmp_path, capsys):
    assert run(monkeypatch, tmp_path / "a") == 0
    out = capsys.readouterr().out
    path = tmp_path / "a" / "gradient_agreement.json"
    found = json.loads(path.read_text())
    assert [(row["T"], row["epoch"]) for row in found["rows"]] == [
        (T, epoch) for T in (2, 4) for epoch in (0, 1, 2)
    ]
    assert list(found["rows"][0]["rules"]) == ["sltt", "sltt_k(1)"]  # tbptt(3) needs three steps
    for row in found["rows"]:
        for name, rule in row["rules"].items():
            assert set(rule["layers"]) == {"Dense_0", "Dense_1"}
            assert 0.1 < rule["overall"]["cosine"] < 1 - 1e-6 and 0 < rule["overall"]["relative_error"]
            readout = rule["layers"]["Dense_1"]["cosine"]
            assert (abs(readout - 1) < 1e-5) == (name != "sltt_k(1)")
    last = {name: rule["overall"]["cosine"] for name, rule in found["rows"][-1]["rules"].items()}
    assert last["sltt_k(1)"] < last["sltt"] < last["tbptt(3)"]

    ends = found["ends"]
    assert ends["T"] == 4 and ends["start"] != ends["end"]
    for end in (ends["start"], ends["end"]):
        assert list(end["cosine"]) == list(end["lags"]) == ["LIF_0"]
        assert end["cosine"]["LIF_0"][-1] == pytest.approx(1, abs=1e-5)
        assert all(c < 0.9999 for c in end["cosine"]["LIF_0"][:-1])
        norms = end["lags"]["LIF_0"]
        assert len(norms["spectral"]) == 3
        assert all(n <= 0.5**k * 1.0001 for k, n in enumerate(norms["spectral"], 1))
    assert f"fades to 0.1 % in {horizon(2.0):.1f} steps" in out
    assert (tmp_path / "a" / "gradient_agreement.md").read_text() in out
    for name in ("agreement", "steps"):
        assert_picture(tmp_path / "a" / f"{name}.png")

    # What is done is not done again, and the same again elsewhere gives the same bits.
    with monkeypatch.context() as patch:
        patch.setattr(sweeps, "train", None)
        patch.setattr(gradient_agreement, "agreement", lambda *_: pytest.fail("compared again"))
        assert run(patch, tmp_path / "a") == 0
    assert json.loads(path.read_text()) == found
    assert run(monkeypatch, tmp_path / "b") == 0
    assert json.loads((tmp_path / "b" / "gradient_agreement.json").read_text()) == found
    assert run(monkeypatch, tmp_path / "a", "--batches", 3) == 1
    assert "choose another --workdir" in capsys.readouterr().err


@pytest.mark.slow
def test_a_recurrent_network_has_no_layers_to_look_at(monkeypatch, tmp_path):
    """All else is there, and the hours before it are not lost."""
    own = tmp_path / "own.py"
    own.write_text(f"{HEAD}    return data.ArrayData(*split(x, y[:, 0]), 3), encoders.event_frames()\n")
    args = ("qtdb", "--data", own, "--steps", 5, "--epochs", 1, "--batch-size", 8, "--features", 8)
    assert call(gradient_agreement, monkeypatch, *args, "--workdir", tmp_path / "run") == 0
    found = json.loads((tmp_path / "run" / "gradient_agreement.json").read_text())
    assert len(found["rows"]) == 2 and "ends" not in found
    assert_picture(tmp_path / "run" / "agreement.png")
    assert not (tmp_path / "run" / "steps.png").exists()


def test_where_nothing_agrees():
    assert gradient_agreement.number(math.nan) is None and gradient_agreement.number(0.5) == 0.5


@pytest.mark.slow
def test_one_batch(monkeypatch, tmp_path, capsys):
    args = (*QUICK, "--steps", 3, "--batches", 1, "--workdir", tmp_path)
    assert call(gradient_agreement, monkeypatch, *args) == 0
    found = json.loads((tmp_path / "gradient_agreement.json").read_text())
    assert [(row["T"], row["epoch"]) for row in found["rows"]] == [(3, 0), (3, 1), (3, 2)]
    for row in found["rows"]:
        layers = {name: part["cosine"] for name, part in row["rules"]["sltt"]["layers"].items()}
        assert layers["Dense_0"] < 1 - 1e-6 and layers["Dense_1"] == pytest.approx(1, abs=1e-5)
    assert found["ends"]["start"]["cosine"]["LIF_0"][-1] == pytest.approx(1, abs=1e-5)
    assert (tmp_path / "gradient_agreement.md").read_text() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--rules", "bptt"), "rules must be others than bptt, got bptt"),
        (("--rules", "sltt_k:1"), "a rule is one of bptt(chunk, remat, bits)"),
        (("--steps", "1"), "steps must be numbers in 2..1000000, got (1,)"),
        (("--rules", "sltt", "sltt_k(9)", "--steps", 2, 8), "rule sltt_k(9) needs 9 steps, more than any of"),
        (("--rules", "sltt_k(4)", "--steps", 2, 8), "none of the rules sltt_k(4) can be run over T=2"),
        (("--batches", "0"), "batches must be >= 1, got 0"),
    ],
)
def test_bad_settings(args, message, monkeypatch, tmp_path, capsys):
    assert_refused(gradient_agreement, (*NET, *args), message, tmp_path / "run", monkeypatch, capsys)
