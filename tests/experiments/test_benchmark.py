"""The benchmark does what it says, and so do its tables and pictures."""

import json
import re
import stat
import sys

import benchmark
import jax
import pytest
from peers import runner
from peers.tables import collect, report
from peers.workloads import WORKLOADS
from plots.benchmark import plot_benchmark, plot_chunks

from tests.common.scripts import assert_picture, assert_refused, call


def interpreter(path, line):
    """A stand-in for Python."""
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


QUICK = ("--workloads", "mlp_T10", "--precisions", "float32", "--repeats", 1, "--seconds", 0)


@pytest.mark.slow
def test_one_measurement(monkeypatch, tmp_path, capsys):
    """One small measurement, and another one of a missing and of a stuck peer, which resumes the first."""
    bare = interpreter(tmp_path / "bare", f'exec "{sys.executable}" -S "$@"')
    stuck = interpreter(tmp_path / "stuck", "exec sleep 60")
    common = (*QUICK, "--no-memory", "--workdir", tmp_path / "run")
    assert call(benchmark, monkeypatch, *common, "--peers", "sltt_jax", "--rules", "sltt") == 0
    (row,) = json.loads((tmp_path / "run" / "benchmark.json").read_text())["rows"]
    assert row["rule"] == "sltt" and len(row["seconds"]) == 1 and 2 < row["loss"] < 3
    # The operations of three products forward and two backward, and the gradient of all inputs but the first.
    sizes = 784 * 512, 512 * 512, 512 * 512, 512 * 10
    assert row["flops"] == pytest.approx(2 * 64 * 10 * (3 * sum(sizes) - sizes[0]), rel=0.01)
    assert not (tmp_path / "run" / "benchmark.png").exists()  # there is nothing to compare with
    capsys.readouterr()

    peers = ("--peers", "sltt_jax", "snntorch", "spyx", "--rules", "bptt", "sltt", "--limit", 1)
    monkeypatch.setattr(benchmark, "own_rules", lambda workload, kinds: ("sltt",))
    pythons = ("--peer-python", f"snntorch={bare}", f"spyx={stuck}")
    assert call(benchmark, monkeypatch, *common, *peers, *pythons) == 0
    out = capsys.readouterr()
    assert "| snnTorch, sltt | not installed |" in out.out and "| Spyx, bptt | > 1 s |" in out.out
    assert f"snntorch: not measured, {bare} has no numpy. `pip install torch snntorch`" in out.err
    rows = json.loads((tmp_path / "run" / "benchmark.json").read_text())["rows"]
    assert rows[0] == row  # nothing is measured twice
    assert [(r["peer"], r["rule"]) for r in rows[1:]] == [
        (peer, rule) for peer in ("snntorch", "spyx") for rule in ("bptt", "sltt")
    ]


@pytest.mark.slow
def test_memory_and_figures(monkeypatch, tmp_path):
    args = (*QUICK, "--peers", "sltt_jax", "--rules", "sltt", "sltt_k(1)", "--workdir", tmp_path)
    assert call(benchmark, monkeypatch, *args) == 0
    first = json.loads((tmp_path / "benchmark.json").read_text())
    assert first["machine"]["cores"] >= 1
    assert [row["rule"] for row in first["rows"]] == ["sltt", "sltt_k(1)"]
    for row in first["rows"]:
        assert row["compile_seconds"] > 0 and row["temp_bytes"] > 0 and row["flops"] > 0
        assert row["about"]["jax"] == jax.__version__
        assert row["peak_bytes"] is None or row["peak_bytes"] > 0
    text = (tmp_path / "benchmark.md").read_text()
    assert "784-512-512-512-10, batch 64, T=10" in text and "SLTT-K against its bound" in text


@pytest.mark.slow
def test_devices_of_a_cpu(monkeypatch, tmp_path, capsys):
    """The benchmark makes a device of every core for the peer that shares the batch."""
    monkeypatch.setattr(runner, "CORES", 2)
    args = (*QUICK, "--rules", "sltt", "--no-memory", "--peers", "sltt_jax", "sltt_jax_devices")
    assert call(benchmark, monkeypatch, *args, "--workdir", tmp_path) == 0
    one, two = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert two["peer"] == "sltt_jax_devices" and two["seconds"]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["temp_bytes"] > one["temp_bytes"]  # those of both devices
    assert re.search(r"^\| sltt_jax, all devices, sltt \| [\d.]+ ms \|$", capsys.readouterr().out, re.M)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--workloads", "mlp"), "unknown workloads ['mlp']; there are linear512_T500"),
        (("--repeats", 0), "repeats must be >= 1, got 0"),
        (("--limit", -1), "limit must be >= 0, got -1"),
        (("--peer-python", "spyx"), "peer_python takes peer=path of an interpreter, got 'spyx'"),
        (("--peer-python", "spyx=nowhere"), "peer_python takes peer=path of an interpreter"),
    ],
)
def test_bad_settings(args, message, monkeypatch, tmp_path, capsys):
    assert_refused(benchmark, args, message, tmp_path / "run", monkeypatch, capsys)


def test_results_of_another_machine_are_refused(monkeypatch, tmp_path, capsys):
    (tmp_path / "benchmark.json").write_text(json.dumps({"machine": {"cpu": "Abacus"}, "rows": []}))
    assert call(benchmark, monkeypatch, "--workdir", tmp_path) == 1
    assert "holds results of {'cpu': 'Abacus'}; choose another --workdir" in capsys.readouterr().err


def test_a_failing_process_is_an_error(monkeypatch, tmp_path, capsys):
    broken = interpreter(tmp_path / "broken", "echo no such thing >&2; exit 3")
    args = ("--workloads", "mlp_T10", "--peers", "spyx", "--peer-python", f"spyx={broken}")
    assert call(benchmark, monkeypatch, *args, "--workdir", tmp_path) == 1
    err = capsys.readouterr().err
    assert "failed with status 3" in err and "no such thing" in err


def row(peer, rule, *seconds, precision="float32", workload="mlp_T50", round=0, **more):
    figures = {"seconds": list(seconds), "cpu_seconds": list(seconds), "loss": 2.0} if seconds else {}
    return {
        "round": round, "workload": workload, "precision": precision, "peer": peer, "rule": rule,
        "about": {"jax": "1.2"}, **figures, **more,
    }  # fmt: skip


ROWS = [
    row("pytorch", "sltt", 0.1, 0.2, 0.9),
    row("pytorch", "sltt", 0.2, 0.3, round=1),
    row("pytorch", "bptt", 0.3),
    row("sltt_jax", "sltt", 0.15, temp_bytes=2**20, flops=1e9),
    row("sltt_jax", "sltt(2)", 0.12, temp_bytes=2 * 2**20, flops=1e9),
    row("sltt_jax", "sltt(5)", 0.1, temp_bytes=3 * 2**20, flops=1e9),
    row("sltt_jax", "sltt(25)", 0.13, temp_bytes=9 * 2**20, flops=1e9),
    row("sltt_jax", "sltt(10)", 0.11, temp_bytes=5 * 2**20, flops=1e9),
    row("sltt_jax", "sltt_k(1)", 0.06, temp_bytes=2**20, flops=0.36e9),
    row("sltt_jax", "sltt(5)", 0.04, precision="bfloat16", temp_bytes=2**20, flops=1e9),
    row("plain_flax", "bptt", silent=600.0),
    row("spyx", "bptt", 0.25),
    row("spyx", "sltt", cannot="BPTT only"),
]


def test_tables():
    """Ratios of medians over all rounds; the best chunk in brackets; SLTT-K over its bound."""
    assert collect(ROWS)["mlp_T50", "float32", "pytorch", "sltt"]["median"] == 0.2
    text = report({"cpu": "Abacus", "cores": 2}, ROWS, WORKLOADS)
    for line in (
        "Abacus, 2 cores. jax 1.2.",
        "| PyTorch by hand, sltt, ms | 200.0 |",
        "| sltt_jax, sltt | 0.75 |",
        "| sltt_jax, sltt, best chunk | 0.50 (5) |",
        "| sltt_jax, sltt, best chunk, bfloat16 | 0.20 (5) |",
        "| PyTorch by hand, bptt | 1.50 |",
        "| Spyx, bptt | 1.25 |",
        "| Spyx, sltt | - |",
        "| Flax + scan by hand, bptt | > 600 s |",
        "| mlp_T50 | sltt_k(1) | 0.40 | 0.36 | 1.11 |",
        "**mlp_T50**: 784-512-512-512-10, batch 64, T=50",
        "| sltt_jax, sltt(5) | float32 | 100.0 | 100.0 | 1 | 0.50 | 0.67 | 100.0 |  | 3.0 |  | 10 | 2.0000 |",
    ):
        assert line in text.splitlines() or line in text.split("\n\n"), line


def test_pictures(tmp_path):
    plot_benchmark(ROWS, WORKLOADS, tmp_path / "benchmark.png")
    plot_chunks(ROWS, WORKLOADS, tmp_path / "chunk.png")
    for name in ("benchmark.png", "chunk.png"):
        assert_picture(tmp_path / name)
