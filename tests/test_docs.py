"""The pages of docs/ run from top to bottom, and what they say is what comes out."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import evaluate
import numpy as np
import pytest

from tests.common.documents import ROOT, blocks, run_page
from tests.common.scripts import call

ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}

PAGES = sorted((ROOT / "docs").glob("own_*.md"))


def page(name):
    return (ROOT / "docs" / f"{name}.md").read_text()


def accuracy(run):
    return json.loads((Path("runs") / run / "summary.json").read_text())["test_accuracy"]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_pages_have_a_title_and_links_that_lead_somewhere(path):
    text = path.read_text()
    assert (
        re.match(r"# \w.*\n", text)
        and len(re.findall(r"^# ", re.sub(r"```.*?```", "", text, flags=re.S), re.M)) == 1
    )
    assert all((path.parent / link).exists() for link in re.findall(r"\]\(([\w./]+)\)", text))
    assert {block.language for block in blocks(text)} <= {"", "python", "bash"}
    for block in blocks(text):
        if block.language == "python":
            compile(block.text, path.name, "exec")


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compile")
def test_a_loop_of_your_own(tmp_path, monkeypatch, capsys):
    outputs = [out for _, out in run_page(page("own_loop"), tmp_path, monkeypatch, capsys)]
    _, loop, weighted, of_steps, nnx, linen = outputs
    records = [json.loads(line) for line in (tmp_path / "runs/loop/metrics.jsonl").read_text().splitlines()]
    assert len(records) == 5 and records[-1]["test_accuracy"] > 0.95 > records[0]["train_accuracy"]
    assert "epoch 5: " in loop
    trained, evaluated = re.fullmatch(
        r"loss ([\d.]+) in training, ([\d.]+) in evaluation\n", weighted
    ).groups()
    assert trained == evaluated
    error, close = re.fullmatch(r"error ([\d.]+), close ([\d.]+) of 280 answers\n", of_steps).groups()
    assert float(error) < 0.5 < float(close)
    assert float(nnx.split()[-1]) > 0.8 and re.match(r"loss [\d.]+, accuracy [\d.]+\n", linen)


@pytest.mark.slow
def test_the_loop_of_the_page_is_resumed_after_a_kill(tmp_path, monkeypatch):
    """It ends with the bits of a run that was left alone."""
    script = next(block.text for block in blocks(page("own_loop")) if block.title == "loop.py")
    script = script.replace("epochs=5", "epochs=2")
    for folder in ("killed", "whole"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "loop.py").write_text(script)
    command = [sys.executable, "loop.py"]
    environment = ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": "2"}
    run = lambda folder: {"cwd": tmp_path / folder, "env": environment, "stderr": subprocess.DEVNULL}
    killed = subprocess.Popen(command, **run("killed"), stdout=subprocess.DEVNULL)
    kill_after(killed, tmp_path / "killed/runs/loop/checkpoints", lambda numbers: max(numbers) >= 10)
    again = subprocess.run(command, **run("killed"), check=True, stdout=subprocess.PIPE)
    whole = subprocess.run(command, **run("whole"), check=True, stdout=subprocess.PIPE)
    assert whole.stdout.decode().splitlines()[-1] == again.stdout.decode().splitlines()[-1]
    of = lambda folder: [
        json.loads(x) for x in (tmp_path / folder / "runs/loop/metrics.jsonl").read_text().splitlines()
    ]
    for one, other in zip(of("killed"), of("whole"), strict=True):
        assert one["train_loss"] == other["train_loss"] and one["test_accuracy"] == other["test_accuracy"]


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compile")
def test_data_of_your_own(tmp_path, monkeypatch, capsys):
    pages = page("own_data")
    found = list(run_page(pages, tmp_path, monkeypatch, capsys))
    assert accuracy("shapes") == 1 and accuracy("motions") >= 0.9
    assert accuracy("delayed") > 0.5 and accuracy("drawn") > 0.6
    commands = [out for block, out in found if block.language == "bash"]
    assert (
        "3 classes: left 32 + 8, right 32 + 8, top 32 + 8" in commands[0]
        and "T=2    test 1.0000" in commands[0]
    )
    assert "each [6, 16, 16, 2]" in commands[1] and "labels   at 83.3 % of the steps" in commands[2]
    shown = [block.text for block in blocks(pages) if not block.language]
    assert found[-1][1] in shown


@pytest.mark.slow
def test_a_run_on_images_is_killed_resumed_and_evaluated(tmp_path, monkeypatch, capsys):
    """By the words of the page; it ends with the parameters of a run that was left alone."""
    monkeypatch.chdir(tmp_path)
    make, commands = blocks(page("own_data"))[1:3]
    exec(make.text, {})
    _, script, *words = shlex.split(commands.text.splitlines()[0])
    command = [sys.executable, ROOT / script, *words, "--save-every", "2"]
    quiet = {"env": ENVIRONMENT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    began = subprocess.Popen(command, **quiet)
    kill_after(began, tmp_path / "runs/shapes/checkpoints", lambda numbers: max(numbers) >= 2)
    assert not (tmp_path / "runs/shapes/summary.json").exists()
    subprocess.run(command, **quiet, check=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert call(evaluate, monkeypatch, tmp_path / "runs/shapes", "--T", 4) == 0
    assert "T=4    test 1.0000" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    command[command.index("runs/shapes")] = "runs/whole"
    subprocess.run(command, **quiet, check=True)
    one, other = (json.loads(Path(f"runs/{run}/summary.json").read_text()) for run in ("shapes", "whole"))
    assert one["parameters_sha256"] == other["parameters_sha256"] and np.isfinite(one["test_loss"])


@pytest.mark.slow
def test_weights_there_and_back(tmp_path):
    """By the words of the page; without a spike the logits would be 0.04."""
    pytest.importorskip("spikingjelly", reason="what the weights come from is an optional dependency")
    for block in blocks(page("coming_from")):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
    for script in ("save.py", "read.py", "load.py"):
        command = [sys.executable, "-W", "ignore", script]
        run = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, check=True, stdout=subprocess.PIPE)
    logits, apart = re.fullmatch(r"logits up to (\S+), apart by (\S+)\n", run.stdout.decode()).groups()
    assert float(logits) > 0.3 and float(apart) < 1e-2


def kill_after(process, checkpoints, enough):
    """Kills a process when there are such checkpoints."""
    end = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < end:
        numbers = [int(p.name) for p in checkpoints.glob("*") if p.name.isdecimal()]
        if numbers and enough(numbers):
            break
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
