"""What every script does with settings, errors, signals and results."""

import dataclasses
import json
import signal
from types import SimpleNamespace

import pytest
from common.command import command, markdown_table, plus_minus, resumed, write_results

from sltt_jax.training import Stopped
from tests.common.scripts import call


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a test."""

    number: int = 1


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (None, 0, ""),
        (ValueError("no such thing"), 1, "error: no such thing\n"),
        (FileNotFoundError("no such file"), 1, "error: no such file\n"),
        (FloatingPointError("not a number"), 1, "error: not a number\n"),
        (Stopped(signal.SIGTERM), 143, "\nstopped by SIGTERM; the same command resumes it\n"),
    ],
)
def test_exit_status_and_message(error, status, message, monkeypatch, capsys):
    seen = []

    @command(Settings, "A script.", xla=lambda: seen.append("xla"))
    def main(settings):
        seen.append(settings.number)
        if error is not None:
            raise error

    script = SimpleNamespace(main=main, __name__="script")
    assert call(script, monkeypatch, "--number", 3) == status
    assert seen == ["xla", 3] and capsys.readouterr().err == message
    assert call(script, monkeypatch, "--number", "x") == 2 and len(seen) == 2


def test_other_errors_are_defects_and_pass(monkeypatch):
    @command({"one": ("The first.", Settings(1)), "two": ("The second.", Settings(2))}, "A script.", xla=None)
    def main(settings):
        raise KeyError(settings.number)

    with pytest.raises(KeyError, match="2"):
        call(SimpleNamespace(main=main, __name__="script"), monkeypatch, "two")


def test_results_are_resumed_under_the_same_conditions(tmp_path):
    path = tmp_path / "found.json"
    same = {"rules": ("sltt",), "folder": tmp_path}
    found = resumed(path, "settings", same)
    assert found["rows"] == []
    write_results(tmp_path, "found", {**found, "rows": [1]}, "| a |")
    assert resumed(path, "settings", same)["rows"] == [1] and list(tmp_path.glob("*.tmp")) == []
    assert (tmp_path / "found.md").read_text() == "| a |\n"
    with pytest.raises(ValueError, match=r"holds results of .*; choose another --workdir"):
        resumed(path, "settings", {**same, "rules": ("bptt",)})
    assert json.loads(path.read_text())["rows"] == [1]


def test_tables():
    assert markdown_table(["", "b"], [["1", "2"], ["3", ""]]) == "|  | b |\n|---|---|\n| 1 | 2 |\n| 3 |  |"
    assert plus_minus((0.1235, 0.01), ".2f", 100) == "12.35 +- 1.00"
