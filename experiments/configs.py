"""The settings of an experiment, and the presets that can be named on the command line."""

import dataclasses
from typing import Literal

import tyro

from sltt_jax import rules, surrogate
from sltt_jax.models import MLP, ConvNet
from sltt_jax.neurons import Neuron
from sltt_jax.rules import Rule


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on.

    Attributes:
      preset: the preset that it started from.
      model: "mlp" or "convnet".
      features: units or channels of the hidden layers.
      rule: training rule.
      T: time steps.
      k: steps with a backward pass, of sltt_k.
      draw: how sltt_k picks them.
      scale: sltt_k divides the sum of their gradients by T ("paper") or by k ("unbiased").
      window: steps between two cuts, of tbptt.
      chunk: steps that go through the network together, of sltt and bptt.
      remat: bptt computes again what it would have to keep.
      tau: membrane time constant in steps.
      v_threshold: firing threshold.
      surrogate: surrogate derivative of the spike.
      dropout: share of spikes that are dropped.
      mse_weight: share of the mean squared error in the loss; the rest is cross entropy.
      mse_target: what the squared error pulls the logits to.
      epochs: passes over the training data.
      batch_size: samples an update.
      optimizer: "sgd" (coupled weight decay, momentum) or "adamw".
      lr: learning rate of the first epoch; a cosine takes it to 0.
      momentum: of sgd.
      weight_decay: on all parameters.
      seed: of parameters, sample order, dropout and SLTT-K.
    """

    preset: tyro.conf.Suppress[str]
    model: Literal["mlp", "convnet"] = "convnet"
    features: tuple[int, ...] = (32, 64)
    rule: Literal["bptt", "tbptt", "sltt", "sltt_k"] = "sltt"
    T: int = 6
    k: int = 2
    draw: Literal["uniform", "first", "last", "strided"] = "uniform"
    scale: Literal["paper", "unbiased"] = "paper"
    window: int = 2
    chunk: int = 1
    remat: bool = False
    tau: float = 1.1
    v_threshold: float = 1.0
    surrogate: Literal["triangle", "rectangle", "sigmoid", "atan", "fast_sigmoid"] = "triangle"
    dropout: float = 0.0
    mse_weight: float = 0.0
    mse_target: Literal["ones", "one_hot"] = "ones"
    epochs: int = 20
    batch_size: int = 64
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.0
    seed: int = 0

    def __post_init__(self):
        for name in ("T", "epochs", "batch_size", "k", "window", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.lr > 0:
            raise ValueError(f"lr must be > 0, got {self.lr}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in 0..1, got {self.dropout}")
        for name, rule in (("k", "sltt_k"), ("window", "tbptt"), ("chunk", "sltt"), ("chunk", "bptt")):
            if self.rule == rule and getattr(self, name) > self.T:
                raise ValueError(f"{name}={getattr(self, name)} is more than the T={self.T} time steps")


PRESETS = {
    "digits": Config("digits", lr=0.05, weight_decay=5e-4, mse_weight=0.05),
    "digits_mlp": Config(
        "digits_mlp", model="mlp", features=(256, 256), optimizer="adamw", lr=2e-3, weight_decay=1e-2
    ),
}

DESCRIPTIONS = {
    "digits": "8x8 handwritten digits that come with scikit-learn, a convolutional network.",
    "digits_mlp": "The same digits, a network of two fully connected layers.",
}


def make_rule(config: Config) -> Rule:
    """The training rule of a configuration."""
    if config.rule == "bptt":
        return rules.bptt(chunk=config.chunk, remat=config.remat)
    if config.rule == "tbptt":
        return rules.tbptt(config.window)
    if config.rule == "sltt":
        return rules.sltt(chunk=config.chunk)
    return rules.sltt_k(config.k, draw=config.draw, scale=config.scale)


def make_model(config: Config, classes: int) -> MLP | ConvNet:
    """The network of a configuration."""
    spike = surrogate.SURROGATES[config.surrogate]()
    neuron = Neuron(tau=config.tau, v_threshold=config.v_threshold, surrogate=spike)
    build = {"mlp": MLP, "convnet": ConvNet}[config.model]
    return build(features=config.features, classes=classes, neuron=neuron, dropout=config.dropout)
