"""The experiments that are made of many runs, on a few samples."""

import json
import sys

import ablation
import k_tradeoff
import pytest
import sweeps

QUICK = ("digits_mlp", "--features", 8, "--T", 2, "--epochs", 1, "--train-samples", 128, "--test-samples", 64)


def call(module, monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, args)])
    try:
        return module.main()
    except SystemExit as stopped:
        return stopped.code


def test_k_tradeoff(monkeypatch, tmp_path, capsys):
    args = (*QUICK, "--K", 1, "--seeds", 2, "--workdir", tmp_path)
    assert call(k_tradeoff, monkeypatch, *args) == 0
    rows = {row["name"]: row for row in json.loads((tmp_path / "k_tradeoff.json").read_text())["rows"]}
    draws = [f"sltt_k(1, {how})" for how in ("uniform", "strided", "first", "last", "unbiased")]
    assert list(rows) == ["bptt", "sltt", *draws]
    assert (tmp_path / "k_tradeoff.md").read_text() in capsys.readouterr().out
    assert (tmp_path / "k_tradeoff.png").read_bytes().startswith(b"\x89PNG")
    # Two forward passes and one backward pass, in place of two: (2 + 2) / (2 + 4), less the input's gradient.
    assert 0.6 < rows["sltt_k(1, last)"]["flops_per_update"] / rows["sltt"]["flops_per_update"] < 0.8
    ends = {name: summary(tmp_path / name / "0")["parameters_sha256"] for name in rows}
    # With T=2 a stride takes the last step too; all else differs.
    assert ends["sltt_k(1, strided)"] == ends["sltt_k(1, last)"]
    assert len(set(ends.values())) == len(rows) - 1, "two variants were trained alike"
    assert ends["sltt"] != summary(tmp_path / "sltt" / "1")["parameters_sha256"]

    # Once more: nothing is trained again.
    monkeypatch.setattr(sweeps, "train", None)
    assert call(k_tradeoff, monkeypatch, *args) == 0
    assert call(k_tradeoff, monkeypatch, *args, "--lr", 0.5) == 1
    assert "holds a run of other settings" in capsys.readouterr().err


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def test_ablation(monkeypatch, tmp_path, capsys):
    args = (*QUICK, "--surrogates", "triangle", "--taus", 1.1, 5, "--steps", 1, 3, "--seeds", 1)
    assert call(ablation, monkeypatch, *args, "--workdir", tmp_path) == 0
    rows = json.loads((tmp_path / "ablation.json").read_text())["rows"]
    assert [(r["tau"], r["T"], r["rule"]) for r in rows] == [
        (tau, T, rule) for tau in (1.1, 5.0) for T in (1, 3) for rule in ("bptt", "sltt")
    ]
    cosines = {(r["tau"], r["T"]): r["cosine"][0] for r in rows if r["rule"] == "sltt"}
    assert cosines[1.1, 1] == pytest.approx(1, abs=1e-5) and cosines[5.0, 1] == pytest.approx(1, abs=1e-5)
    assert cosines[5.0, 3] < cosines[1.1, 3] < 1 - 1e-5
    assert (tmp_path / "ablation.md").read_text() in capsys.readouterr().out
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("module", "args", "message"),
    [
        (k_tradeoff, ("--K", 0), "K must be numbers >= 1, got (0,)"),
        (k_tradeoff, ("--seeds", 0), "seeds must be >= 1, got 0"),
        (ablation, ("--surrogates", "relu"), "surrogates must be of triangle"),
    ],
)
def test_bad_settings(module, args, message, monkeypatch, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert call(module, monkeypatch, *QUICK, *args, "--workdir", workdir) in (1, 2)
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not workdir.exists()
