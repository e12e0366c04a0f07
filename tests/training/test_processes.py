"""Several processes that train together: what they end at, and what happens when one of them dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import chex
import jax.numpy as jnp
import pytest

from sltt_jax import training
from sltt_jax.training import rendezvous
from sltt_jax.training.rendezvous import TIMEOUT

TRAIN = Path(__file__).parents[2] / "experiments" / "train.py"
UPDATES, EPOCHS = 22, 3
SETTINGS = (
    "digits_mlp", "--features", 32, "--T", 3, "--dropout", 0.2, "--train-samples", 64 * UPDATES,
    "--test-samples", 64, "--epochs", EPOCHS, "--save-every", 5,
)  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


def start(workdir, cache, *args, devices=1):
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = map(str, (sys.executable, TRAIN, *SETTINGS, *args, "--workdir", workdir))
    return subprocess.Popen([*command], env=environment, stderr=subprocess.PIPE, text=True)


def free_address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def start_two(workdir, cache, *args, apart=((), ())):
    """Two processes of the same arguments, but for those in `apart`."""
    where = ("--coordinator", free_address(), "--num-processes", 2, "--process-id")
    return [start(workdir, cache, *args, *apart[number], *where, number) for number in (0, 1)]


def ended(processes, timeout=300):
    """The exit statuses and errors of processes."""
    errors = [process.communicate(timeout=timeout)[1] for process in processes]
    return [process.returncode for process in processes], errors


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def all_parameters(workdir):
    sizes = {"Dense_0": (64, 32), "Dense_1": (32, 10)}
    like = {name: {"kernel": jnp.zeros(shape), "bias": jnp.zeros(shape[1])} for name, shape in sizes.items()}
    return training.load_parts(workdir, {"params": like})["params"]


@pytest.fixture(scope="module")
def together(tmp_path_factory, cache):
    """The workdir of two processes that nothing happened to."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    statuses, errors = ended(start_two(workdir, cache))
    assert statuses == [0, 0], errors
    return workdir


JOINING = """
import sys
from sltt_jax import training
address, process = sys.argv[1], int(sys.argv[2])
training.join(address, 2, process)
try:
    training.on_first(lambda: open("/no/such/file"))
except OSError as error:
    print(type(error).__name__, training.differing({"a": "same", "b": str(process)}))
print(training.same_everywhere("settings"), training.same_everywhere(f"settings {process}"))
training.on_first(lambda: None)
training.leave(3)
"""


def test_two_processes_join_and_compare():
    """The smoke test of what the slow ones train with."""
    command = (sys.executable, "-c", JOINING, free_address())
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([*command, process], **pipes) for process in "01"]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [3, 3], outputs
    failed = "FileNotFoundError", "ConnectionError"  # of what the first does, on it and on the other
    assert [out.splitlines()[-2:] for out, _ in outputs] == [[f"{e} ['b']", "True False"] for e in failed]


@pytest.mark.slow
def test_two_processes_train_as_one(together, cache, tmp_path):
    assert (summary(together)["processes"], summary(together)["devices"]) == (2, 2)
    # One process with two devices sums the same two gradients.
    statuses, errors = ended([start(tmp_path / "one", cache, devices=2)])
    assert statuses == [0], errors
    assert summary(tmp_path / "one")["processes"] == 1
    digest = summary(together)["parameters_sha256"]
    assert digest == summary(tmp_path / "one")["parameters_sha256"]
    lines = [training.read_metrics(workdir) for workdir in (together, tmp_path / "one")]
    for two, one in zip(*lines, strict=True):
        for name in ("train_loss", "test_loss", "test_accuracy"):
            assert two[name] == pytest.approx(one[name], rel=1e-6)
    # The control: a run that is a little different ends at something else.
    statuses, _ = ended([start(tmp_path / "other", cache, "--seed", 1, devices=2)])
    assert statuses == [0] and summary(tmp_path / "other")["parameters_sha256"] != digest


@pytest.mark.slow
def test_two_processes_train_as_one_device(cache, tmp_path):
    """Without dropout, whose masks differ from device to device."""
    args = ("--dropout", 0, "--epochs", 1)
    statuses, errors = ended(start_two(tmp_path / "two", cache, *args))
    assert statuses == [0, 0], errors
    statuses, errors = ended([start(tmp_path / "one", cache, *args)])
    assert statuses == [0], errors
    two, one = (all_parameters(tmp_path / name) for name in ("two", "one"))
    chex.assert_trees_all_close(two, one, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_one_of_two_dies(together, cache, tmp_path, lost):
    workdir = tmp_path / "run"
    processes = start_two(workdir, cache)
    metrics = workdir / training.METRICS_FILE
    while not metrics.exists():
        assert [process.poll() for process in processes] == [None, None], ended(processes)
        time.sleep(0.005)
    processes[lost].send_signal(signal.SIGKILL)
    began = time.monotonic()
    (_, errors) = processes[1 - lost].communicate(timeout=3 * TIMEOUT)
    took = time.monotonic() - began
    assert processes[1 - lost].returncode not in (0, None)
    assert "another one ended" in errors or "another task died" in errors, errors
    ended(processes)
    assert took < 3 * TIMEOUT
    # No checkpoint is damaged: the same commands resume, and end where they would have.
    statuses, errors = ended(start_two(workdir, cache))
    assert statuses == [0, 0], errors
    assert not (workdir / training.DAMAGED).exists()
    assert summary(workdir)["parameters_sha256"] == summary(together)["parameters_sha256"]


@pytest.mark.slow
def test_processes_of_other_settings(cache, tmp_path):
    apart = (("--lr", 0.1, "--save-every", 5), ("--lr", 0.2, "--save-every", 7))
    statuses, errors = ended(start_two(tmp_path / "run", cache, apart=apart))
    assert statuses == [1, 1] and not (tmp_path / "run").exists()
    assert all("error: the processes differ in lr, save_every; run the same" in text for text in errors), (
        errors
    )


def test_addresses_that_cannot_be():
    """They are refused before JAX, which would crash or wait, is asked."""
    with socket.create_server(("localhost", 0)) as other:
        port = other.getsockname()[1]
        for args, error, message in (
            ((f"localhost:{port}", 2, 0), ConnectionError, "the first process cannot listen there"),
            (("no.such.host.invalid:1234", 2, 1), ConnectionError, "no.such.host.invalid is unknown"),
            (("localhost:99999", 2, 0), ValueError, "must be host:port or auto, got 'localhost:99999'"),
            ((":1234", 2, 0), ValueError, "must be host:port or auto, got ':1234'"),
            (("localhost:1234", 2, 2), ValueError, "process must be in 0..1, got 2"),
        ):
            with pytest.raises(error, match=message):
                training.join(*args)


@pytest.mark.slow
def test_processes_that_do_not_find_one_another(cache, tmp_path):
    """The other one has another address; both give up in the same 30 s."""
    began = time.monotonic()
    apart = [
        start(
            tmp_path / "run", cache, "--coordinator", free_address(), "--num-processes", 2, "--process-id", n
        )
        for n in (0, 1)
    ]
    statuses, errors = ended(apart)
    assert statuses == [1, 1], errors
    assert "process 1 did not come within 30 s" in errors[0], errors
    assert "nobody answers there within 30 s" in errors[1], errors
    assert time.monotonic() - began < TIMEOUT + 30  # of which the imports take some on a busy machine


@pytest.mark.parametrize(
    ("numbers", "count", "message"),
    [
        ((0, 1, 1), 3, "there are two processes with the number 1"),
        ((0, 1), 3, "process 2 did not come within 1 s"),
        ((0, 0), 2, "the first process cannot listen there"),
        ((1,), 2, "nobody answers there within 1 s"),
    ],
)
def test_processes_that_do_not_meet(numbers, count, message, monkeypatch):
    """All of them are told, in threads in place of processes."""
    monkeypatch.setattr(rendezvous, "TIMEOUT", 1)
    address = free_address()

    def fault(number):
        with pytest.raises(ConnectionError) as caught:
            rendezvous.meet(address, count, number)
        return str(caught.value)

    with ThreadPoolExecutor(len(numbers)) as threads:
        faults = [*threads.map(fault, numbers)]
    assert any(message in text for text in faults), faults


def test_numbers_of_processes_that_differ(monkeypatch):
    address = free_address()
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(rendezvous.meet, address, count, n) for n, count in ((0, 2), (1, 3))]
        for one in both:
            with pytest.raises(ConnectionError, match="process 1 was told of 3 processes, the first of 2"):
                one.result()
