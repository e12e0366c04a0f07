"""The presets are the settings of the paper, and train."""

import json

from common import configs
import pytest
import train
from tests.common.scripts import call

# The authors' commands: net, T, k, epochs, batch, lr, weight decay, dropout, share and target of the MSE.
RECIPES = {
    "cifar10": ("resnet18", 6, 2, 200, 128, 0.1, 5e-5, 0.0, 0.05, "ones"),
    "cifar100": ("resnet18", 6, 2, 200, 128, 0.1, 5e-4, 0.0, 0.05, "ones"),
    "dvs_cifar10": ("vgg11", 10, 2, 300, 128, 0.05, 5e-4, 0.3, 0.05, "one_hot"),
    "dvs_gesture": ("vgg11", 20, 4, 300, 16, 0.1, 5e-4, 0.4, 0.05, "ones"),
    "imagenet_stage1": ("nf_resnet34", 1, 1, 100, 256, 0.1, 1e-5, 0.0, 0.0, "ones"),
    "imagenet_stage2": ("nf_resnet34", 6, 2, 30, 256, 0.001, 0.0, 0.0, 0.0, "ones"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_of_the_paper(name):
    c = configs.PRESETS[name]()
    got = (
        c.model, c.T, c.k, c.epochs, c.batch_size, c.lr, c.weight_decay, c.dropout, c.mse_weight, c.mse_target
    )  # fmt: skip
    assert got == RECIPES[name]
    common = (c.tau, c.v_threshold, c.surrogate, c.optimizer, c.momentum, c.seed, c.width)
    assert common == (1.1, 1.0, "triangle", "sgd", 0.9, 2022, 1.0)
    assert c.preset == name and f"train.py {name}" in configs.PRESETS[name].__doc__


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "cifar10" else pytest.mark.slow) for name in RECIPES]
)
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


def test_made_up_data_can_be_learnt(monkeypatch, tmp_path):
    args = ("cifar10", "--made", "--model", "convnet", "--features", 16, "--T", 2, "--train-samples", 400)
    assert call(train, monkeypatch, *args, "--epochs", 4, "--lr", 0.05, "--workdir", tmp_path) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["train_loss"] < 2.2
