"""The report of a GPU, rehearsed on the CPU, and what it does when something is wrong."""

import json
import re
import subprocess
import sys
from functools import partial

import gpu_report
import jax
import parity
import pytest
from common import device_checks
from common.result_rows import Rows, read_rows, tabulate
from peers.gpu_plan import ENTRIES, SHARES, STAGES, Entry
from peers.workloads import WORKLOADS, tiny

from sltt_jax import parse_rule
from tests.common.scripts import assert_refused, call


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the script sets it where it is not set


def planned(monkeypatch, stage, *entries):
    """Few of the entries of a stage."""
    monkeypatch.setitem(ENTRIES, stage, [Entry(*entry) for entry in entries])


def rehearse(monkeypatch, workdir, *args):
    """The exit status, and the rows."""
    status = call(gpu_report, monkeypatch, *args, "--tiny", "--workdir", workdir)
    return status, read_rows(workdir / "report.jsonl")


@pytest.mark.slow
def test_one_update(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_report, "RESULTS", tmp_path / "gpu.jsonl")
    planned(monkeypatch, "jax", ("sltt_jax", "mlp_T50", "float32", "sltt"))
    status, (row,) = rehearse(monkeypatch, tmp_path, "jax")
    assert status == 0 and not (tmp_path / "gpu.jsonl").exists()  # for what was measured on a GPU
    assert row["stage"] == "jax" and row["tiny"] and row["jax"] == jax.__version__ and row["device"] == "cpu"
    assert (row["rule"], row["T"], row["batch"], row["updates"]) == ("sltt", 50, 4, 2)
    assert 0 < row["ms_least"] <= row["ms"] <= row["ms_most"]
    assert row["total_mib"] >= row["temp_mib"] and 2 < row["loss"] < 3
    assert "| jax | mlp_T50 | sltt_jax | sltt | float32 | 50 | 4 |" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_a_process_for_every_stage(monkeypatch, tmp_path):
    """And what is not installed is named, in rows that were not skipped for it."""
    bare = tmp_path / "bare" / "torch"
    bare.mkdir(parents=True)
    (bare / "__init__.py").write_text("raise ModuleNotFoundError('No module named torch', name='torch')")
    monkeypatch.setenv("PYTHONPATH", str(bare.parent), prepend=":")
    status, rows = rehearse(monkeypatch, tmp_path, "pytorch", "spikingjelly", "--limit", 60)
    assert status == 0
    for stage in ("pytorch", "spikingjelly"):
        ours = [row for row in rows if row["stage"] == stage]
        assert len(ours) == len(ENTRIES[stage])
        assert {row["missing"] for row in ours} == {"torch is not installed"}
    assert (tmp_path / "report.md").read_text().count("missing: torch is not installed") == len(rows)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of what torch.compile imports and traces
@pytest.mark.parametrize(("stage", "peer"), [("pytorch", "pytorch"), ("compiled", "pytorch_compiled")])
def test_pytorch(stage, peer, monkeypatch, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is an optional development dependency")
    # The graphs are captured as ever, and run without minutes of a C++ compiler.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    planned(monkeypatch, stage, (peer, "mlp_T50", "float32", "bptt", 2))
    planned(monkeypatch, "jax", ("sltt_jax", "mlp_T50", "float32", "bptt", 2))
    for name in (stage, "jax"):
        status, rows = rehearse(monkeypatch, tmp_path, name)
        assert status == 0, rows
    theirs, ours = rows
    assert theirs["torch"] and theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)


@pytest.mark.slow
def test_launches(monkeypatch, tmp_path):
    planned(monkeypatch, "kernels", ("sltt_jax", "mlp_T50", "float32", "sltt", 2))
    status, (row,) = rehearse(monkeypatch, tmp_path, "kernels")
    times = [ms for _, _, ms in row["kernels"]]
    assert status == 0 and times == sorted(times, reverse=True)
    assert 0 < sum(times) <= row["device_ms"] * 1.01 and row["launches"] >= 1
    assert any("fusion" in name for name, *_ in row["kernels"])


@pytest.mark.slow
def test_a_device_that_computes_something_else_is_found(monkeypatch):
    """The CPU does not deviate from itself, but would with weights that are off by one in a million."""
    workload, other = tiny(WORKLOADS["mlp_T50"])._replace(T=3), jax.devices()[1]
    assert device_checks.check_deviation(workload, "sltt", "float64", other) == {"deviation": 0.0}
    put = jax.device_put

    def off(tree, place=None, **options):
        if place == other:
            state, batch = tree
            tree = state._replace(params=jax.tree.map(lambda p: p * (1 + 1e-6), state.params)), batch
        return put(tree, place, **options)

    monkeypatch.setattr(jax, "device_put", off)
    with pytest.raises(ArithmeticError, match="the cpu deviates from the CPU by"):
        device_checks.check_deviation(workload, "sltt", "float64", other)


def test_numbers_of_the_authors_code(monkeypatch):
    """With errors that are given: all cases can be read, and one above its bound is told."""
    settings = gpu_report.Settings(stages=("sanity",))
    rows = [figures for names, figures in gpu_report.checks(settings) if ".json" in names["check"]]
    found = {"forward": {"logits": 1e-15}, "sltt": {"gradient": 2e-9}}
    monkeypatch.setattr(parity, "check", lambda content, only: found)
    assert len(rows) == 6 and all(figures() == {"deviation": 2e-9} for figures in rows)
    found["sltt"]["gradient"] = 2e-8
    with pytest.raises(ArithmeticError, match=r"sltt: gradient 2\.0e-08 > 1e-08"):
        rows[0]()


def test_an_error_is_a_row_and_a_status(monkeypatch, tmp_path, capsys):
    planned(monkeypatch, "jax", *(("sltt_jax", "mlp_T50", "float32", rule) for rule in ("eprop", "sltt(51)")))
    status, rows = rehearse(monkeypatch, tmp_path, "jax")
    assert status == gpu_report.ROWS_FAILED
    assert "a rule is one of" in rows[0]["error"] and rows[0]["rule"] == "eprop"
    assert "chunk=51 is more than the T=50" in rows[1]["error"]  # the next one is tried all the same
    assert f"rows have errors, see {tmp_path / 'report.jsonl'}" in capsys.readouterr().err


def test_without_an_accelerator(monkeypatch, tmp_path, capsys):
    args = ("jax", "--workdir", tmp_path / "run")
    assert call(gpu_report, monkeypatch, *args) == gpu_report.NO_ACCELERATOR
    assert "JAX has no accelerator here; --tiny rehearses" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("cuda",), "cuda"),
        (("--limit", 0), "limit must be >= 1, got 0"),
        (("--repeats", 0), "repeats must be >= 1, got 0"),
        (("--seconds", -1), "seconds must be >= 0, got -1"),
    ],
)
def test_bad_settings(args, message, monkeypatch, tmp_path, capsys):
    assert_refused(gpu_report, args, message, tmp_path / "run", monkeypatch, capsys)


class Ended:
    """What stands in for the processes of stages."""

    def __init__(self, *ends):
        self.ends, self.commands = list(ends), []

    def __call__(self, command, timeout):
        self.commands.append(command)
        if (end := self.ends.pop(0)) is None:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, end)


def test_stages_that_end_badly(monkeypatch, tmp_path):
    """One that is killed and one that runs out of time do not keep the next from running."""
    processes = Ended(-11, None, 0)
    monkeypatch.setattr(subprocess, "run", processes)
    status, rows = rehearse(monkeypatch, tmp_path, "jax", "memory", "kernels", "--limit", 100)
    assert status == gpu_report.ROWS_FAILED
    assert [row["stage"] for row in rows] == ["jax", "memory"]
    assert rows[0]["error"] == "the process ended with status -11"
    assert re.fullmatch(r"the rest, of which one was at work after \d+ s", rows[1]["skipped"])
    assert [command[2] for command in processes.commands] == ["jax", "memory", "kernels"]
    given = [float(command[command.index("--limit") + 1]) for command in processes.commands]
    shares = SHARES["jax"], SHARES["memory"], SHARES["kernels"]
    assert given[0] == pytest.approx(100 * shares[0] / sum(shares), rel=0.05)
    assert given[2] == pytest.approx(100, rel=0.05)  # all that is left
    assert all(command[0] == sys.executable and "--tiny" in command for command in processes.commands)


def test_no_stage_is_tried_after_one_without_accelerator(monkeypatch, tmp_path):
    monkeypatch.setattr(subprocess, "run", Ended(gpu_report.NO_ACCELERATOR))
    status = call(gpu_report, monkeypatch, "--workdir", tmp_path / "run")
    assert status == gpu_report.NO_ACCELERATOR and not (tmp_path / "run").exists()


def test_plan():
    """Every entry is of a workload that there is, under a rule that it can be run under."""
    assert set(SHARES) == set(STAGES) == {*ENTRIES, "sanity"}
    for entry in (entry for entries in ENTRIES.values() for entry in entries):
        T = entry.T or WORKLOADS[entry.workload].T
        assert getattr(parse_rule(entry.rule), "chunk", 1) <= min(T, tiny(WORKLOADS[entry.workload]).T)
        assert entry.peer == "sltt_jax" or entry.rule in ("bptt", "sltt")


def test_rows_come_at_once_and_in_time(tmp_path):
    report, results = tmp_path / "report.jsonl", tmp_path / "results" / "gpu.jsonl"
    rows = Rows([report, results], 100.0, stage="jax")
    rows.attempt(lambda: {"ms": 2.0}, rule="sltt")
    assert json.loads(report.read_text())["ms"] == 2.0  # before the next is begun
    rows.attempt(lambda: {"missing": "torch is not installed"}, rule="bptt")
    rows.attempt(lambda: 1 / 0, rule="bptt")
    assert rows.failed and "error" in read_rows(report)[2]
    late = Rows([report, results], 0.0, stage="jax")
    late.attempt(lambda: pytest.fail("there is no time"), rule="late")
    assert "left" in read_rows(report)[3]["skipped"] and not late.failed
    (measured,) = read_rows(results)
    assert measured["rule"] == "sltt"
    table = tabulate(read_rows(report))
    assert table.count("\n") == 5 and "ZeroDivisionError" in table and "torch is not installed" in table


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "report.jsonl"
    path.write_text('{"stage": "jax"}\n{"stage": "j')
    with pytest.raises(ValueError, match=r"report\.jsonl, line 2, is no row of results"):
        read_rows(path)
