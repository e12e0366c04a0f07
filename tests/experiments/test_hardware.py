"""A network on its way to hardware, as hardware.py tells it."""

import json
import stat
import sys
from importlib.util import find_spec

import hardware
import jax
import numpy as np
import pytest
from common import deployed
from common.runs import Run, build
from peers import nir_simulator

from tests.common.scripts import assert_refused, call

pytestmark = pytest.mark.usefixtures("quick_compile")

QUICK = ("--features", 8, "--T", 3, "--epochs", 2, "--train-samples", 240, "--test-samples", 60)

# In place of a simulator: 0 for every class but the one that the sum of all inputs of a sample names.
STAND_IN = """#!{python}
import json, sys
import numpy as np
simulator, graph, inputs, outputs = sys.argv[3:]
if simulator == "spikingjelly":
    print(json.dumps({{"missing": "spikingjelly"}}))
else:
    x = np.load(inputs)
    assert open(graph, "rb").read(4) == b"\\x89HDF" and x.ndim == 5 and x.shape[2] == 1
    y = np.eye(10)[x.sum((2, 3, 4)).astype(int) % 10]
    np.save(outputs, y)
    print(json.dumps({{"version": "0.0"}}))
"""


def stand_in(folder):
    path = folder / "python"
    path.write_text(STAND_IN.format(python=sys.executable))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("fsdd",), "subcommands: digits, digits_mlp, mnist, fashion_mnist, nmnist"),
        (("digits", "--bits", 8, 1), "bits must be numbers in 2..16, got (8, 1)"),
        (("digits", "--levels", 0), "levels must be in 1..65536, got 0"),
        (("digits", "--tune-lr", 0), "tune_lr must be > 0 and finite, got 0.0"),
        (("digits", "--seeds", 0), "seeds must be >= 1, got 0"),
        (("digits", "--simulator-python", "nowhere"), "simulator_python must be an interpreter, got nowhere"),
    ],
)
def test_bad_settings(args, message, monkeypatch, tmp_path, capsys):
    assert_refused(hardware, args, message, tmp_path / "run", monkeypatch, capsys)


def test_recipes_have_what_hardware_has():
    found = hardware.recipes()
    assert {"digits", "digits_mlp", "mnist", "nmnist"} <= found.keys() and "qtdb" not in found
    assert all((run.tau, run.v_reset) == (2.0, 0.0) for _, run in found.values())


def test_the_table():
    row = {"test_accuracy": 0.5, "agreement": 0.75, "weight_bytes": 2048.0, "bytes_moved": 4096.0}
    seeds = [row | {"membrane_bits": 12}, row | {"test_accuracy": 1.0, "membrane_bits": 12}]
    table = hardware.tabulate([hardware.summarise("8 bits", seeds), hardware.summarise("trained", [row])])
    assert table.splitlines()[2:] == [
        "| 8 bits | 75.0 +- 25.0 | 75.0 +- 0.0 | 2.0 | 12 | 4 |",
        "| trained | 50.0 +- 0.0 | 75.0 +- 0.0 | 2.0 |  | 4 |",
    ]


def test_a_simulator_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nir", None)
    monkeypatch.setattr(sys, "argv", ["nir_simulator", "snntorch", "graph.nir", "in.npy", "out.npy"])
    assert nir_simulator.main() == 0
    assert json.loads(capsys.readouterr().out) == {"missing": "nir"}


@pytest.mark.slow
def test_every_form_of_a_network(monkeypatch, tmp_path, capsys):
    args = ("digits", *QUICK, "--bits", 2, "--seeds", 1, "--tune-epochs", 2, "--workdir", tmp_path)
    assert call(hardware, monkeypatch, *args, "--simulator-python", stand_in(tmp_path)) == 0
    said = capsys.readouterr()
    rows = {row["network"]: row for row in json.loads((tmp_path / "hardware.json").read_text())["rows"]}
    exported = ["exported, in snntorch"] if find_spec("nir") else []
    of_bits = [f"2 bits{form}" for form in ("", ", tuned", ", tuned, in integers")]
    assert list(rows) == ["trained", "folded", *exported, *of_bits]
    assert ("spikingjelly: not run" if exported else "nothing is exported, nir is not installed") in said.err
    assert (tmp_path / "hardware.md").read_text() in said.out
    agreement = {name: row["agreement"][0] for name, row in rows.items()}
    assert agreement["trained"] == agreement["folded"] == 1
    assert all(agreement[name] < 0.5 for name in exported)  # the stand-in knows nothing
    # What two bits take away, tuning gives back in part; integers do what the rounded network does.
    accuracy = {name: row["test_accuracy"][0] for name, row in rows.items()}
    assert accuracy["2 bits"] < accuracy["2 bits, tuned"] and accuracy["2 bits"] < accuracy["trained"]
    assert abs(accuracy["2 bits, tuned"] - accuracy["2 bits, tuned, in integers"]) < 0.15
    assert rows["2 bits"]["weight_bytes"][0] * 16 == rows["folded"]["weight_bytes"][0] == 4 * (72 + 1280)


@pytest.mark.slow
def test_tuning_leaves_folded_norms_as_they_are():
    experiment = build(Run.of("digits", features=(8,), T=2, train_samples=128, tau=2.0, v_reset=0.0))
    state = experiment.initial_state(jax.random.key(0))
    folded = deployed.folded(experiment, deployed.Learned(state.params, state.variables))
    tuned = deployed.tuned(experiment, folded, 4, epochs=1, lr=0.1)
    before, after = folded.params["StepBatchNorm_0"], tuned.params["StepBatchNorm_0"]
    np.testing.assert_array_equal(after["scale"], np.ones(8))
    assert np.abs(after["bias"] - before["bias"]).max() > 1e-4
    moved = np.abs(tuned.params["Conv_0"]["kernel"] - folded.params["Conv_0"]["kernel"])
    assert 1e-4 < moved.max() < 1
