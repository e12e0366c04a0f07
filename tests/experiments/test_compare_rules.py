"""The rules side by side."""

import json
import shutil

import compare_rules
import pytest

from tests.common.scripts import QUICK, assert_refused, call

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_the_table_is_over_bptt(monkeypatch, tmp_path, capsys):
    """With made-up summaries in place of the training: a row for every rule, and a folder for its run."""
    runs = []

    def trained(run):
        runs.append(run)
        n = len(runs)
        return {"test_accuracy": n / 10, "temp_bytes": n * 2**20, "flops_per_update": 2e9 * n,
                "seconds_per_update": n / 4}  # fmt: skip

    monkeypatch.setattr(compare_rules, "trained", trained)
    assert call(compare_rules, monkeypatch, *QUICK, "--workdir", tmp_path) == 0
    rules = ["bptt", "tbptt(2)", "sltt", "sltt(3)", "sltt_k(1)", "sltt_k(2)"]
    assert list(json.loads((tmp_path / "table.json").read_text())) == rules
    assert [run.rule for run in runs] == [run.workdir.name for run in runs] == rules
    assert not any(run.overwrite for run in runs)  # started again, it finds what is finished
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert table.splitlines()[0] == "| rule | test accuracy | temporaries | GFLOP / update | time / update |"
    assert "| bptt | 0.1000 | 1.00 MiB (1.00) | 2.000 (1.00) | 250.0 ms (1.00) |" in table
    assert "| sltt | 0.3000 | 3.00 MiB (3.00) | 6.000 (3.00) | 750.0 ms (3.00) |" in table
    assert compare_rules.compared_rules(1) == ["bptt", "tbptt(1)", "sltt", "sltt(1)", "sltt_k(1)"]


@pytest.mark.slow
def test_compare_rules(monkeypatch, tmp_path, capsys):
    assert call(compare_rules, monkeypatch, *QUICK, "--lr", 0.05, "--workdir", tmp_path) == 0
    rows = json.loads((tmp_path / "table.json").read_text())
    assert list(rows) == ["bptt", "tbptt(2)", "sltt", "sltt(3)", "sltt_k(1)", "sltt_k(2)"]
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    lines = [line.split(" | ") for line in table.splitlines()[2:]]
    assert all("(1.00)" in cell for cell in lines[0][2:]) and len(lines) == 6
    assert rows["sltt_k(1)"]["flops_per_update"] < rows["sltt_k(2)"]["flops_per_update"]
    assert rows["sltt_k(2)"]["flops_per_update"] < rows["sltt"]["flops_per_update"]
    # The same start: the rules have the same parameters before their first update, and the same data order.
    losses = {name: row["train_loss"] for name, row in rows.items()}
    rounding = abs(losses["sltt"] - losses["sltt(3)"])
    assert rounding < 1e-5 and abs(losses["sltt"] - losses["sltt_k(1)"]) > max(1e-5, 5 * rounding)


def test_other_settings_of_one_run_are_said_before_any_is_trained(digits_run, monkeypatch, tmp_path, capsys):
    shutil.copytree(digits_run, tmp_path / "sltt_k(2)")
    before = (tmp_path / "sltt_k(2)" / "summary.json").read_text()
    assert call(compare_rules, monkeypatch, *QUICK, "--lr", 0.05, "--workdir", tmp_path) == 1
    assert "sltt_k(2) holds a run of other settings" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["sltt_k(2)"]
    assert (tmp_path / "sltt_k(2)" / "summary.json").read_text() == before


def test_it_is_not_for_several_processes(monkeypatch, tmp_path, capsys):
    args = (*QUICK, "--coordinator", "auto")
    assert_refused(compare_rules, args, "--coordinator", tmp_path / "run", monkeypatch, capsys)
