"""The presets are the settings of the paper, and train."""

import dataclasses
import json

import jax
import pytest
import train
from common import presets
from common.configs import make_model
from common.runs import Run
from common.workdirs import prepare

from tests.common.scripts import assert_picture, call

pytestmark = pytest.mark.usefixtures("quick_compile")

# The authors' commands: net, T, k, epochs, batch, lr, weight decay, dropout, share and target of the MSE.
RECIPES = {
    "cifar10": ("resnet18", 6, 2, 200, 128, 0.1, 5e-5, 0.0, 0.05, "ones"),
    "cifar100": ("resnet18", 6, 2, 200, 128, 0.1, 5e-4, 0.0, 0.05, "ones"),
    "dvs_cifar10": ("vgg11", 10, 2, 300, 128, 0.05, 5e-4, 0.3, 0.05, "one_hot"),
    "dvs_gesture": ("vgg11", 20, 4, 300, 16, 0.1, 5e-4, 0.4, 0.05, "ones"),
    "imagenet_stage1": ("nf_resnet34", 1, 1, 100, 256, 0.1, 1e-5, 0.0, 0.0, "ones"),
    "imagenet_stage2": ("nf_resnet34", 6, 2, 30, 256, 0.001, 0.0, 0.0, 0.0, "ones"),
}


SEQUENCES = ("qtdb", 12), ("psmnist", 28), ("fsdd", 10), ("shd", 10), ("ssc", 10)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_of_the_paper(name):
    c = presets.PRESETS[name]()
    k = min(c.paper_k, c.T)
    loss = c.mse_weight, c.mse_target
    got = (c.model, c.T, k, c.epochs, c.batch_size, c.lr, c.weight_decay, c.dropout, *loss)
    assert got == RECIPES[name]
    common = (c.tau, c.v_threshold, c.surrogate, c.optimizer, c.momentum, c.seed, c.width)
    assert common == (1.1, 1.0, "triangle", "sgd", 0.9, 2022, 1.0)
    assert c.preset == name and f"train.py {name}" in presets.PRESETS[name].__doc__


# The others have the network and the data of one of these.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "dvs_cifar10", "dvs_gesture", "imagenet_stage2"])
def test_recipes_run_reduced_on_made_up_data(name, monkeypatch, tmp_path):
    few = ("--train-samples", 32, "--test-samples", 16, "--epochs", 1)
    rule = ("--rule", "sltt_k") if name in ("dvs_cifar10", "imagenet_stage2") else ()
    args = (name, "--reduced", "--made", *few, *rule, "--workdir", tmp_path)
    assert call(train, monkeypatch, *args) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["preset"] == name and summary["T"] == RECIPES[name][1]
    assert summary["train_loss"] > 0 and len(summary["test_accuracy_per_step"]) == RECIPES[name][1]
    assert summary["parameters"] < 1_000_000
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["width"] == 0.125 and config["batch_size"] == 16 and config["made"]


def test_a_recipe_is_made_small_on_made_up_data(tmp_path):
    """Without training: its settings, its data and its network."""
    run = Run.of("cifar10", reduced=True, made=True, train_samples=32, workdir=tmp_path / "run")
    with prepare(run) as (experiment, _):
        pass
    config = json.loads((run.workdir / "config.json").read_text())
    found = [config[name] for name in ("width", "batch_size", "train_samples", "test_samples", "made")]
    assert found == [0.125, 16, 32, 64, True] and config["epochs"] == 2
    assert next(experiment.data.train)["x"].shape == (16, 32, 32, 3)
    state = jax.eval_shape(experiment.initial_state, jax.random.key(0))
    assert sum(p.size for p in jax.tree.leaves(state.params)) < 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize(("name", "T"), SEQUENCES)
def test_sequences_on_made_up_data(name, T, monkeypatch, tmp_path, capsys):
    few = ("--train-samples", 32, "--test-samples", 16, "--epochs", 1, "--T", T)
    assert call(train, monkeypatch, name, "--reduced", "--made", *few, "--workdir", tmp_path) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "finished" and len(summary["test_accuracy_per_step"]) == T
    assert 0 <= summary["train_accuracy"] <= 1 and 0 <= summary["test_accuracy"] <= 1
    assert summary["firing_rates"].keys() == {"ALIF_0"}
    assert_picture(tmp_path / "curves.png")


@pytest.mark.parametrize("name", ["digits", "digits_mlp", "fsdd"])
def test_a_hard_reset_reaches_the_neurons(name):
    soft, hard = (make_model(Run.of(name, **reset), 10) for reset in ({}, {"v_reset": 0.0}))
    assert soft.neuron.v_reset is None and hard.neuron.v_reset == 0
    assert dataclasses.replace(hard.neuron, v_reset=None) == soft.neuron


def test_time_constants_that_cannot_be_learned():
    with pytest.raises(ValueError, match=r"tau_a is learned .* got 1\.0"):
        Run.of("qtdb", tau_a=1.0)
    assert Run.of("digits", tau=1.0).tau == 1.0
