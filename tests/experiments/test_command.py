"""What every script does with settings, errors, signals and results."""

import contextlib
import dataclasses
import gc
import json
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
from common.command import command, markdown_table, plus_minus, resumed, write_results

from sltt_jax.training import Stopped, StopRequests
from tests.common.scripts import call


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a test."""

    number: int = 1
    overwrite: bool = False
    names: tuple[str, ...] = ("a",)


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
    assert call(script, monkeypatch, "--names") == 1 and len(seen) == 2
    assert capsys.readouterr().err.endswith("error: names needs at least one value\n")
    if status == 143:
        assert call(script, monkeypatch, "--overwrite") == 143
        assert "the same command without --overwrite resumes it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "last"), [("KeyboardInterrupt", "stopped by SIGINT"), ("ValueError(3)", "ValueError: 3")]
)
def test_stopped_while_it_imports(raised, last):
    """Before `main` there is nothing to save; the exit status is the one that a shell knows."""
    script = f"import sys\nsys.path.insert(0, 'experiments')\nimport common\nraise {raised}"
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    interrupted = raised == "KeyboardInterrupt"
    assert ended.stderr.splitlines()[-1] == last and ("Traceback" in ended.stderr) != interrupted
    assert ended.returncode == (-signal.SIGINT if interrupted else 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("dropped", [False, True])
def test_a_signal_before_any_training(number, dropped, monkeypatch, capsys):
    """It ends the script; where Python drops what a handler raises, it is obeyed when training begins."""
    before, updates = signal.getsignal(number), []

    @command(Settings, "A script.", xla=None)
    def main(settings):
        with contextlib.suppress(*([KeyboardInterrupt] if dropped else [])):
            signal.raise_signal(number)
        with StopRequests() as stop:
            updates.append(stop.asked(1))
            raise Stopped(stop.asked(1))

    assert call(SimpleNamespace(main=main, __name__="script"), monkeypatch) == 128 + number
    assert updates == [number] * dropped and signal.getsignal(number) == before
    err = capsys.readouterr().err
    assert err.startswith(f"\nstopped by {number.name}") and ("resumes it" in err) == dropped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_garbage_is_collected(number, monkeypatch, capsys):
    """Python drops what is raised there: the script is stopped a moment later, without a traceback."""
    hook, collected = sys.unraisablehook, []

    def callback(phase, info):
        if not collected:
            collected.append(phase)
            signal.raise_signal(number)

    @command(Settings, "A script.", xla=None)
    def main(settings):
        gc.collect()
        time.sleep(10)
        pytest.fail("forgotten")

    gc.callbacks.append(callback)
    status = call(SimpleNamespace(main=main, __name__="script"), monkeypatch)
    gc.callbacks.remove(callback)
    assert collected and status == 128 + number and sys.unraisablehook is hook
    assert capsys.readouterr().err == f"\nstopped by {number.name}\n"


def test_other_errors_in_callbacks_are_told(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_type))
    with StopRequests(at_once=True):
        weakref.finalize(Settings(), None)  # calls None when the settings are gone
        gc.collect()
    assert told == [TypeError]


def test_a_signal_after_the_last_update(monkeypatch, capsys):
    """The next run of a sweep does not begin."""

    @command(Settings, "A script.", xla=None)
    def main(settings):
        with StopRequests():
            signal.raise_signal(signal.SIGTERM)
        pytest.fail("forgotten")

    assert call(SimpleNamespace(main=main, __name__="script"), monkeypatch) == 143
    assert "stopped by SIGTERM" in capsys.readouterr().err


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
    for text, message in (("{", "found.json is damaged: "), ("[]", "found.json holds no such results")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            resumed(path, "settings", same)
        assert path.read_text() == text


def test_tables():
    assert markdown_table(["", "b"], [["1", "2"], ["3", ""]]) == "|  | b |\n|---|---|\n| 1 | 2 |\n| 3 |  |"
    assert plus_minus((0.1235, 0.01), ".2f", 100) == "12.35 +- 1.00"
