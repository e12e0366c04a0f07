"""Runs of experiments/train.py in processes of their own that are killed, stopped, or find the disk full.

Whatever happened to a run, the same command resumes it, and the end is bit for bit that of a run to which
nothing happened.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sltt_jax import training

TRAIN = Path(__file__).parents[2] / "experiments" / "train.py"
UPDATES, EPOCHS = 20, 3
SETTINGS = (
    "cifar10", "--made", "--model", "convnet", "--features", 4, "--dropout", 0.2, "--T", 2, "--k", 1,
    "--train-samples", 8 * UPDATES, "--test-samples", 16, "--batch-size", 8, "--epochs", EPOCHS,
)  # fmt: skip
SAVES = ("--save-every", 3)
KILLS = {"sltt": 8, "sltt_k": 4, "bptt": 4}


def start(workdir, cache, *args, stderr, script=(TRAIN,)):
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = map(str, (sys.executable, *script, *SETTINGS, *args, "--workdir", workdir))
    return subprocess.Popen([*command], env=environment, stdout=subprocess.DEVNULL, stderr=stderr, text=True)


class Process:
    """A run of the script, of which one process has the workdir at a time."""

    def __init__(self, workdir, cache, *args):
        self.workdir, self.log = workdir, workdir.with_suffix(".log")
        with open(self.log, "wb") as log:
            self.process = start(workdir, cache, *args, stderr=log)

    def wait_for(self, condition):
        """Whether it came true before the process ended."""
        while self.process.poll() is None:
            if condition():
                return True
            time.sleep(0.001)
        return False

    def trains(self):
        """Whether there is a progress bar."""
        return b"update/s]" in self.log.read_bytes()

    def first_update(self):
        return int(self.log.read_text().rpartition(f"/{UPDATES * EPOCHS} [")[0].split()[-1])

    def saves(self):
        """The checkpoints that there are, and those that are being written."""
        return {name.partition(".")[0] for name in self.folders()}

    def checkpoints(self):
        return self.folders() & self.saves()

    def folders(self):
        folder = self.workdir / training.CHECKPOINTS
        return {*os.listdir(folder)} if folder.is_dir() else set()

    def lines(self):
        """The epochs that there is a line of metrics of."""
        path = self.workdir / training.METRICS_FILE
        return path.read_text().splitlines() if path.exists() else []

    def end(self):
        """The exit status, and the errors."""
        return self.process.wait(timeout=300), self.log.read_text()


def outcome(workdir):
    """What a run ended at, without what a clock gave."""
    timed = ("seconds", "per_second", "per_update")
    records = training.read_metrics(workdir)
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["status"] == "finished"
    return summary["parameters_sha256"], [
        {k: v for k, v in record.items() if not k.endswith(timed)} for record in records
    ]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Compiled programs, so that a process that starts again does so in seconds."""
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, cache):
    """By rule: the outcome of a run that nothing happened to, and its seconds from one save to the next."""
    known = {}

    def run(rule):
        if rule not in known:
            workdir = tmp_path_factory.mktemp("runs") / rule
            process = Process(workdir, cache, "--rule", rule, *SAVES)
            assert process.wait_for(process.trains), process.end()
            began = time.monotonic()
            last = str(EPOCHS * (UPDATES + 1))
            assert process.wait_for(lambda: last in process.saves()), process.end()
            period = (time.monotonic() - began) / (EPOCHS * -(-UPDATES // 3))
            assert process.end()[0] == 0
            known[rule] = outcome(workdir), period
        return known[rule]

    return run


# Saves one checkpoint after the other, and tells of each that it has begun.
SAVING = """
import itertools, pathlib, sys
import numpy as np
from sltt_jax.training import Checkpoints
with Checkpoints(pathlib.Path(sys.argv[1])) as checkpoints:
    for n in itertools.count(1):
        checkpoints.save(n, {"w": np.full(200_000, n, np.float32)}, {"n": n})
        print(n, flush=True)
"""


def test_killed_in_the_middle_of_a_save(tmp_path):
    """The smoke test of what the slow ones do to runs: the checkpoint before is whole, and is found.

    And the lock of the process, which kept others out, is gone with it.
    """
    with subprocess.Popen([sys.executable, "-c", SAVING, tmp_path], stdout=subprocess.PIPE) as process:
        begun = next(n for n in map(int, process.stdout) if n == 4)
        with pytest.raises(BlockingIOError, match="in use by another run"), training.Checkpoints(tmp_path):
            pass
        process.kill()
    with training.Checkpoints(tmp_path) as checkpoints:
        loaded, progress = checkpoints.load({"w": np.zeros(200_000, np.float32)})
        assert {p.name for p in (tmp_path / training.CHECKPOINTS).iterdir()} == {
            *map(str, checkpoints.numbers)
        }
    assert progress["n"] >= begun - 1 and not (tmp_path / training.DAMAGED).exists()
    np.testing.assert_array_equal(loaded["w"], np.full(200_000, progress["n"]))


def tear(path, rng):
    """Cuts off the last line, as a kill in the middle of its write, and tells whether there was one."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if lines:
        path.write_bytes(b"".join(lines[:-1]) + lines[-1][: rng.randrange(len(lines[-1]))])
    return bool(lines)


@pytest.mark.slow
@pytest.mark.parametrize("rule", KILLS)
def test_killed_at_random_and_resumed(undisturbed, cache, tmp_path, rule):
    whole, period = undisturbed(rule)
    rng = random.Random(rule)
    kills = in_saves = ahead = torn = ended = 0
    while kills < KILLS[rule]:
        workdir, starts, status = tmp_path / str(ended), [], None
        while status != 0:
            process = Process(workdir, cache, "--rule", rule, *SAVES)
            if process.wait_for(process.trains) and kills < KILLS[rule]:
                starts.append(process.first_update())
                aim = rng.choice([process.saves] * 2 + [process.checkpoints] * 2 + [process.lines])
                before, more = {*aim()}, 1 if aim == process.lines else rng.randint(1, 2)
                process.wait_for(lambda: len({*aim()} - before) >= more)  # noqa: B023
                time.sleep(rng.uniform(0, period))
                process.process.kill()
            status, errors = process.end()
            assert status in (0, -signal.SIGKILL), errors
            if status:
                kills += 1
                in_saves += bool(process.saves() - process.checkpoints())
                ahead += len(process.lines()) > max(map(int, process.checkpoints()), default=0) // (
                    UPDATES + 1
                )
                torn += tear(workdir / training.METRICS_FILE, rng)
        ended += 1
        assert outcome(workdir) == whole
        # It resumed from the last checkpoint every time, and not from the start.
        assert starts == sorted(starts) and len({*starts}) > len(starts) / 2, starts
        assert not (workdir / training.DAMAGED).exists() and process.saves() == process.checkpoints()
    print(
        f"\n{rule}: {kills} kills, {in_saves} in the middle of a save, {ahead} between a line of metrics and "
        f"its checkpoint and {torn} as if in the middle of a line; {ended} runs ended as if there were none"
    )
    if rule == "sltt":  # fewer kills may all miss
        assert in_saves and torn


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_and_resumed(undisturbed, cache, tmp_path, number):
    """SIGTERM is what a scheduler sends before it takes a machine away, SIGINT is Ctrl-C."""
    whole, _ = undisturbed("sltt")
    workdir = tmp_path / "run"
    process = Process(workdir, cache, "--rule", "sltt", *SAVES)
    assert process.wait_for(lambda: process.lines()), process.end()
    process.process.send_signal(number)
    status, errors = process.end()
    assert status == 128 + number and f"stopped by {number.name}; the same command resumes it" in errors
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["status"] == "stopped" and 1 <= summary["epochs"] < EPOCHS
    again = Process(workdir, cache, "--rule", "sltt", *SAVES)
    assert again.wait_for(again.trains) and again.first_update() >= UPDATES
    assert again.end()[0] == 0
    assert outcome(workdir) == whole


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_before_it_trains(undisturbed, cache, tmp_path, number):
    """While it compiles, where Python may drop what a handler raises."""
    whole, _ = undisturbed("sltt")
    for seconds in (0.0, 0.3, 0.8):
        workdir = tmp_path / str(seconds)
        process = Process(workdir, cache, "--rule", "sltt", *SAVES)
        assert process.wait_for((workdir / "config.json").exists), process.end()
        time.sleep(seconds)
        process.process.send_signal(number)
        status, errors = process.end()
        assert status == 128 + number and f"stopped by {number.name}" in errors and "Traceback" not in errors
        assert Process(workdir, cache, "--rule", "sltt", *SAVES).end()[0] == 0
        assert outcome(workdir) == whole


# Runs a script with no file growing beyond so many bytes: the kernel refuses the write, as a full disk does.
FULL = (
    "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2); "
    "sys.argv = sys.argv[2:]; sys.path.insert(0, sys.argv[0].rpartition('/')[0]); "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.mark.slow
def test_a_full_disk_ends_a_run_that_can_be_resumed(undisturbed, cache, tmp_path):
    whole, _ = undisturbed("sltt")
    workdir = tmp_path / "run"
    process = Process(workdir, cache, "--rule", "sltt", *SAVES)
    assert process.wait_for(lambda: len(process.checkpoints()) == 2), process.end()
    process.process.kill()
    process.end()
    before = process.checkpoints()
    largest = max(path.stat().st_size for path in workdir.rglob("*") if path.is_file())
    # Its errors go into a pipe: as a file they could not grow either.
    script = ("-c", FULL, largest // 2, TRAIN)
    full = start(workdir, cache, "--rule", "sltt", *SAVES, script=script, stderr=subprocess.PIPE)
    _, errors = full.communicate(timeout=300)
    assert full.returncode == 1 and "error: checkpoint" in errors and "could not be written to" in errors
    assert process.checkpoints() == before and not (workdir / training.DAMAGED).exists()
    again = Process(workdir, cache, "--rule", "sltt", *SAVES)
    assert again.end()[0] == 0
    assert outcome(workdir) == whole
