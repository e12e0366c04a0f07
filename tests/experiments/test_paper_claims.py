"""The paper's claims: the table of them, and that those on memory hold."""

import json
import subprocess
import sys

import paper_claims
import pytest
from common.runs import Run

from tests.common.scripts import assert_refused, call

pytestmark = pytest.mark.usefixtures("quick_codegen")


@pytest.fixture
def digits(monkeypatch):
    """A network of the digits in place of the paper's."""
    monkeypatch.setattr(paper_claims, "MEMORY", (paper_claims.Claim("digits_mlp", 0.5, 0.9),))
    monkeypatch.setattr(paper_claims, "TIME_PRESET", "digits_mlp")
    small = lambda self, preset, rule: Run.of(preset, features=(128,), rule=rule)
    monkeypatch.setattr(paper_claims.Settings, "run", small)


@pytest.mark.slow
def test_memory(digits, monkeypatch, tmp_path, capsys):
    args = ("--memory", "digits_mlp", "--time", 0, "--workdir", tmp_path)
    assert call(paper_claims, monkeypatch, *args) == 0
    found = json.loads((tmp_path / "paper_claims.json").read_text())
    (row,) = found["memory"]
    assert row["ratio"] == row["sltt"]["total_bytes"] / row["bptt"]["total_bytes"] < 0.8
    assert (row["T"], row["batch"], row["paper"], found["time"]) == (6, 64, 0.5, [])
    table = (tmp_path / "paper_claims.md").read_text()
    assert f"| mlp | 6 | 64 | {row['bptt']['total_bytes'] / 1e9:.3f} |" in table
    assert table in capsys.readouterr().out + "\n"


@pytest.mark.slow
def test_times(digits, monkeypatch, tmp_path, capsys):
    args = ("--memory", "digits_mlp", "--time", 2, "--workdir", tmp_path)
    assert call(paper_claims, monkeypatch, *args) == 0
    found = json.loads((tmp_path / "paper_claims.json").read_text())
    exact, spatial, two, one = found["time"]
    assert [r["rule"] for r in found["time"]] == list(paper_claims.TIME_RULES)
    for r in (spatial, two, one):
        assert r["flops"] == pytest.approx(r["bound"]) and r["seconds"] > 0
    assert one["flops"] < two["flops"] < exact["flops"] <= spatial["flops"]
    assert (tmp_path / "paper_claims.md").read_text() in capsys.readouterr().out + "\n"


def test_table_of_times():
    """Everything but the seconds is over bptt."""
    rows = [
        {"rule": "bptt", "seconds": 2.0, "flops": 10.0, "bound": 11.0, "paper_hours": 80.0},
        {"rule": "sltt_k(1)", "seconds": 1.0, "flops": 5.0, "bound": 4.0, "paper_hours": 20.0},
        {"rule": "sltt_k(2)", "seconds": 1.5, "flops": 7.0, "bound": 7.0, "paper_hours": None},
    ]
    assert paper_claims.tabulate_times(rows).splitlines()[2:] == [
        "| bptt | 2.000 | 1.000 | 1.000 | 1.100 | 1.000 |",
        "| sltt_k(1) | 1.000 | 0.500 | 0.500 | 0.400 | 0.250 |",
        "| sltt_k(2) | 1.500 | 0.750 | 0.700 | 0.700 |  |",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("claim", paper_claims.MEMORY, ids=lambda claim: claim.preset)
def test_memory_of_the_papers_networks(claim, tmp_path):
    """In a process of its own, which is the first to tell XLA how to compile for CPUs."""
    args = ("--memory", claim.preset, "--time", "0", "--workdir", str(tmp_path))
    subprocess.run([sys.executable, paper_claims.__file__, *args], check=True)
    (row,) = json.loads((tmp_path / "paper_claims.json").read_text())["memory"]
    assert (row["preset"], row["goal"]) == (claim.preset, claim.goal)
    assert row["ratio"] <= claim.goal


def test_bad_settings(monkeypatch, tmp_path, capsys):
    args, message = ("--memory", "mnist"), "memory must be of cifar10"
    assert_refused(paper_claims, args, message, tmp_path / "run", monkeypatch, capsys)
