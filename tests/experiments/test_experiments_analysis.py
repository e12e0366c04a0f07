"""The scripts that tell what a run costs, how far gradients agree, and what neurons do, on small networks."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import activity
import cost
import gradient_agreement
import jax
from common import measures
import paper_claims
import pytest
from common import runs
from common import sweeps
import train
from common.configs import PRESETS
from rule_names import parse_rule, show_rule
from tests.common.scripts import call

from sltt_jax.analysis import horizon

NET = ("digits_mlp", "--features", 12, "--epochs", 2, "--train-samples", 128, "--test-samples", 64)


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


def test_rule_names():
    for text, settings, shown in (
        ("bptt", {"rule": "bptt"}, "bptt"),
        ("bptt:remat", {"rule": "bptt", "remat": True}, "bptt(remat)"),
        ("tbptt:4", {"rule": "tbptt", "window": 4}, "tbptt(4)"),
        ("sltt", {"rule": "sltt"}, "sltt"),
        ("sltt_k:12", {"rule": "sltt_k", "k": 12}, "sltt_k(12)"),
    ):
        assert parse_rule(text) == settings and show_rule(text) == shown
    for text in ("", "eprop", "tbptt", "sltt_k:0", "sltt_k:x", "sltt:2", "bptt:4"):
        with pytest.raises(ValueError, match=f"rules are bptt, .*, got '{text}'"):
            parse_rule(text)


class TestCost:
    def test_programs_of_the_command_line(self):
        rules = "bptt", "sltt", "sltt_k:2"
        costs = cost.Costs(model="resnet18", rules=rules, T=(1, 2, 6), chunk=("2", "T"))
        base, batch = cost.recipe(costs)
        assert (base.data, base.model, batch) == ("cifar10", "resnet18", 128)
        found = [(name, run.rule, run.T, run.chunk, run.k) for name, run in cost.variants(costs, base)]
        assert found == [
            *(("bptt", "bptt", T, 1, 1) for T in (1, 2, 6)),
            *(("sltt(chunk=2)", "sltt", T, 2, 1) for T in (2, 6)),
            *(("sltt(chunk=T)", "sltt", T, T, 1) for T in (1, 2, 6)),
            *(("sltt_k(2)", "sltt_k", T, 1, 2) for T in (2, 6)),
        ]
        for model, data in (("vgg13", "dvs_cifar10"), ("nf_resnet50", "imagenet"), ("mlp", "digits")):
            assert cost.recipe(cost.Costs(model=model, batch=3, width=0.5)) == (
                dataclasses.replace(cost.recipe(cost.Costs(model=model))[0], width=0.5), 3,
            )  # fmt: skip
            assert cost.recipe(cost.Costs(model=model))[0].data == data
        assert cost.recipe(cost.Costs(preset="dvs_gesture", model="vgg13"))[0].data == "dvs_gesture"

    def test_times_and_chunks(self, monkeypatch, tmp_path, capsys):
        names = "bptt", "sltt", "sltt_k:1"
        args = ("digits_mlp", "--rules", *names, "--T", 3, "--chunk", 1, "T", "--batch", 8)
        assert call(cost, monkeypatch, *args, "--time", 2, "--workdir", tmp_path) == 0
        found = json.loads((tmp_path / "cost.json").read_text())
        assert (found["model"], found["data"], found["batch"]) == ("mlp", "digits", 8)
        rows = {name: row for name, (row,) in found["rules"].items()}
        assert list(rows) == ["bptt", "sltt", "sltt(chunk=T)", "sltt_k(1)"]
        assert min(row["seconds"] for row in rows.values()) > 0
        exact, k = rows["sltt"], rows["sltt_k(1)"]
        assert exact["flops"] == rows["sltt(chunk=T)"]["flops"]
        # The least that SLTT-K can do: every forward pass, and one of three backward passes.
        assert k["flops"] == pytest.approx(exact["forward_flops"] + exact["backward_flops"] / 3)
        # Three passes of a network of 64-256-256-10 with 8 samples.
        assert exact["forward_flops"] == 2 * 3 * 8 * (64 * 256 + 256 * 256 + 256 * 10)
        table = (tmp_path / "cost.md").read_text()
        assert table in capsys.readouterr().out and table.count("\n") == 2 + 4
        assert f"({exact['total_bytes'] / rows['bptt']['total_bytes']:.3f})" in table
        assert all(is_png(tmp_path / f"{name}.png") for name in ("memory", "time", "tradeoff"))

    def test_made_up_data_and_none_cost_the_same(self):
        run, _ = cost.recipe(cost.Costs(preset="digits_mlp"))
        row, made = cost.measure(run, 8, None), cost.measure(run, 8, 1)
        for name in ("total_bytes", "temp_bytes", "flops", "forward_flops", "bytes_accessed"):
            assert row[name] == made[name]

    def test_largest_batch(self, monkeypatch, tmp_path, capsys):
        args = ("digits_mlp", "--rules", "sltt", "--chunk", 1, "--T", 2, "--workdir", tmp_path)
        assert call(cost, monkeypatch, *args, "--largest-batch", 0.01) == 0
        batch = json.loads((tmp_path / "largest_batch.json").read_text())["rules"]["sltt"]["2"]
        assert f"| sltt | {batch} |" in capsys.readouterr().out
        run = dataclasses.replace(cost.recipe(cost.Costs(preset="digits_mlp"))[0], T=2)
        sizes = [cost.measure(run, b, None)["total_bytes"] for b in (batch, batch + 1)]
        assert batch > 8 and sizes[0] <= 0.01e9 < sizes[1]


class TestPaperClaims:
    def test_table(self, monkeypatch, tmp_path, capsys):
        claim = paper_claims.Claim("digits_mlp", 0.5, 0.9)
        monkeypatch.setattr(paper_claims, "MEMORY", (claim,))
        monkeypatch.setattr(paper_claims, "TIME_PRESET", "digits_mlp")
        args = ("--memory", "digits_mlp", "--time", 2, "--workdir", tmp_path)
        assert call(paper_claims, monkeypatch, *args) == 0
        found = json.loads((tmp_path / "paper_claims.json").read_text())
        (row,) = found["memory"]
        assert row["ratio"] == row["sltt"]["total_bytes"] / row["bptt"]["total_bytes"] < 0.8
        assert (row["T"], row["batch"], row["paper"]) == (6, 64, 0.5)
        exact, spatial, two, one = found["time"]
        assert [r["rule"] for r in found["time"]] == list(paper_claims.TIME_RULES)
        for r in (spatial, two, one):
            assert r["flops"] == pytest.approx(r["bound"]) and r["seconds"] > 0
        assert one["flops"] < two["flops"] < exact["flops"] <= spatial["flops"]
        assert (tmp_path / "paper_claims.md").read_text() in capsys.readouterr().out + "\n"

    @pytest.mark.slow
    @pytest.mark.parametrize("claim", paper_claims.MEMORY, ids=lambda claim: claim.preset)
    def test_memory_of_the_papers_networks(self, claim, tmp_path):
        """In a process of its own, which is the first to tell XLA how to compile for CPUs."""
        args = ("--memory", claim.preset, "--time", "0", "--workdir", str(tmp_path))
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        subprocess.run([sys.executable, paper_claims.__file__, *args], env=environment, check=True)
        (row,) = json.loads((tmp_path / "paper_claims.json").read_text())["memory"]
        assert (row["preset"], row["goal"]) == (claim.preset, claim.goal)
        assert row["ratio"] <= claim.goal


class TestGradientAgreement:
    def run(self, monkeypatch, workdir, *args):
        settings = ("--rules", "sltt", "sltt_k:1", "tbptt:3", "--steps", 2, 4, "--batches", 2, "--tau", 2)
        return call(gradient_agreement, monkeypatch, *NET, *settings, *args, "--workdir", workdir)

    @pytest.mark.slow
    def test_the_same_seed_gives_the_same_figures(self, monkeypatch, tmp_path, capsys):
        assert self.run(monkeypatch, tmp_path / "a") == 0
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
        assert is_png(tmp_path / "a" / "agreement.png") and is_png(tmp_path / "a" / "steps.png")

        # What is done is not done again, and the same again elsewhere gives the same bits.
        with monkeypatch.context() as patch:
            patch.setattr(sweeps, "train", None)
            patch.setattr(gradient_agreement, "agreement", lambda *_: pytest.fail("compared again"))
            assert self.run(patch, tmp_path / "a") == 0
        assert json.loads(path.read_text()) == found
        assert self.run(monkeypatch, tmp_path / "b") == 0
        assert json.loads((tmp_path / "b" / "gradient_agreement.json").read_text()) == found
        assert self.run(monkeypatch, tmp_path / "a", "--batches", 3) == 1
        assert "choose another --workdir" in capsys.readouterr().err

    def test_where_nothing_agrees(self):
        assert gradient_agreement.number(math.nan) is None and gradient_agreement.number(0.5) == 0.5


class TestActivity:
    def test_of_a_run_and_of_its_preset(self, monkeypatch, tmp_path, capsys):
        assert call(train, monkeypatch, *NET, "--T", 3, "--workdir", tmp_path / "run") == 0
        capsys.readouterr()
        assert call(activity, monkeypatch, tmp_path / "run", "--T", 4) == 0
        out = capsys.readouterr().out
        found = json.loads((tmp_path / "run" / "activity.json").read_text())
        rates = found["layers"]["LIF_0"]["rates"]
        assert len(rates) == 4 and 0.01 < min(rates) and max(rates) < 0.9
        assert found["weights"]["Dense_0"]["macs"] == 64 * 12
        spikes = found["weights"]["Dense_1"]["operations"]
        assert spikes == pytest.approx(sum(rates) * 12 * 10, rel=1e-4)
        energy = found["energy"]
        assert energy["ann_macs"] == 64 * 12 + 12 * 10
        assert energy["joules"] == pytest.approx(0.9e-12 * spikes + 4.6e-12 * 4 * 64 * 12)
        assert " ".join(f"{rate:.3f}" for rate in rates) in out and f"{1e6 * energy['joules']:.4g} uJ" in out
        assert is_png(tmp_path / "run" / "activity.png")

        start = ("digits_mlp", "--batch", 16, "--T", 2, "--workdir", tmp_path / "start")
        assert call(activity, monkeypatch, *start) == 0
        found = json.loads((tmp_path / "start" / "activity.json").read_text())
        assert list(found["layers"]) == ["LIF_0", "LIF_1"]

    def test_problems_at_the_start(self):
        for threshold, words in (
            (0.5, []),
            (1.0, ["LIF_0", "LIF_1 is silent"]),
            (100.0, ["LIF_0 is silent", "LIF_1 is silent"]),
        ):
            settings = {**vars(PRESETS["digits_mlp"]()), "T": 2, "v_threshold": threshold}
            experiment = runs.build(runs.Run(**settings))
            found = measures.initial_problems(experiment, experiment.initial_state(jax.random.key(0)))
            assert [text.split(":")[0] for text in found] == words


@pytest.mark.parametrize(
    ("module", "args", "message"),
    [
        (cost, ("nothing",), "unknown preset 'nothing'; there are digits"),
        (cost, ("digits", "--rules", "eprop"), "rules are bptt"),
        (cost, ("digits", "--chunk", "0"), "chunk must be numbers >= 1 or T, got 0"),
        (cost, ("digits", "--batch", "0"), "batch must be > 0, got 0"),
        (cost, ("digits", "--rules", "sltt_k:3", "--T", "2"), "none of the rules can be run over T=(2,)"),
        (cost, ("digits", "--largest-batch", "1", "--time", "3"), "largest_batch runs nothing"),
        (paper_claims, ("--memory", "mnist"), "memory must be of cifar10"),
        (gradient_agreement, (*NET, "--rules", "bptt"), "rules must be others than bptt, got bptt"),
        (gradient_agreement, (*NET, "--steps", "1"), "steps must be numbers >= 2, got (1,)"),
        (gradient_agreement, (*NET, "--batches", "0"), "batches must be >= 1, got 0"),
        (activity, ("nothing",), "'nothing' is no directory, and no preset: digits"),
        (activity, (".", "--made"), "reduced and made are for presets"),
        (activity, (".",), "holds no run"),
        (activity, ("digits", "--T", "0"), "T must be >= 1, got 0"),
    ],
)
def test_bad_settings(module, args, message, monkeypatch, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert call(module, monkeypatch, *args, "--workdir", workdir) in (1, 2)
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not workdir.exists()
