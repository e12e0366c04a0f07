"""The settings of an experiment, and the network that they are of."""

import dataclasses
import math
from dataclasses import InitVar
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import tyro
from common.command import check_numbers
from common.rule_flags import spelt
from common.sources import source_of

from sltt_jax import models, surrogate
from sltt_jax.neurons import Neuron

SMALL = {"mlp": models.MLP, "convnet": models.ConvNet}
RECURRENT = "recurrent"
RESNETS = {"resnet18": models.ResNet18, "resnet34": models.ResNet34}
VGGS = {"vgg11": models.VGG11, "vgg13": models.VGG13, "vgg16": models.VGG16, "vgg19": models.VGG19}
NF_RESNETS = {
    "nf_resnet34": models.NFResNet34,
    "nf_resnet50": models.NFResNet50,
    "nf_resnet101": models.NFResNet101,
}

TEST_SHARE = 0.2

Model = Literal[
    "mlp", "convnet", "recurrent", "resnet18", "resnet34", "vgg11", "vgg13", "vgg16", "vgg19",
    "nf_resnet34", "nf_resnet50", "nf_resnet101",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on.

    Attributes:
      preset: the preset that it started from.
      data: data set, see data_sets.py; or data of one's own: "folder:PATH" of images or "events:PATH" of
        recordings in class folders, or "PATH.py", whose function `load_data` returns it (docs/own_data.md).
      size: height and width of the images of a folder, or of the frames of recordings; by default their own.
      test_share: share of the files of each class for testing, of folders without train/ and test/.
      train_samples: training samples that are used; all by default.
      test_samples: likewise.
      validation: share of the training samples that is kept from training, to select an epoch by.
      encoding: of images: "direct", the same analogue image at each step, or spikes: pixels as "rate", as
        "latency", or the latencies of a "population" of four neurons a pixel with receptive fields.
      preprocessing: of the frames of dvs_cifar10, "paper" as its authors trained on, see cameras.py.
      model: the network.
      features: units or channels of the hidden layers, of mlp, convnet and recurrent.
      cell: of recurrent, whose time constants are all learned.
      lateral: recurrent has lateral weights.
      tau_a: first time constant of the adaptation of alif, in steps.
      tau_spread: how far the first time constants of its neurons are spread, see `cell_layers.Cells`.
      tau_readout: first time constant of the leaky readout of recurrent, in steps.
      decay_readout: that readout multiplies its input by 1/tau, so that it is as large at any tau_readout.
      width: multiplies the channels of the other networks.
      rule: training rule, as `str` spells it: "sltt(6)", "sltt_k(2, draw=first)", "bptt(remat=True)",
        "tbptt(4)"; or its kind alone, which takes its numbers from the flags below.
      T: time steps.
      paper_k: k of sltt_k where nothing names it, at most T.
      k: steps with a backward pass, of sltt_k; by default 2, or what the paper took.
      draw: how sltt_k picks them; by default "uniform".
      scale: sltt_k divides the sum of their gradients by T ("paper", the default) or by k ("unbiased").
      window: steps between two cuts, of tbptt; by default 2.
      chunk: steps that go through the network together, of sltt and bptt, by default 1; "auto" is one that is
        likely to be fast, the default of bptt in train.py.
      remat: bptt computes again what it would have to keep.
      tau: membrane time constant in steps.
      v_threshold: firing threshold.
      v_reset: membrane that a spike leaves behind, a hard reset; by default the threshold is subtracted.
      surrogate: surrogate derivative of the spike.
      dropout: share of spikes that are dropped.
      mse_weight: share of the mean squared error in the loss; the rest is cross entropy.
      mse_target: what the squared error pulls the logits to.
      epochs: passes over the training data.
      batch_size: samples an update.
      optimizer: "sgd" (coupled weight decay, momentum) or "adamw".
      lr: learning rate of the first epoch; a cosine takes it to 0.
      momentum: of sgd.
      weight_decay: on all parameters but learned time constants.
      precision: of convolutions and matrix products; all else is float32.
      sync_batch_stats: batch statistics over all devices, in place of each its own.
      select: what the reported test accuracy is of: the last epoch, the best on the validation samples or, as
        in the paper, the best on the test samples themselves.
      seed: of parameters, sample order, augmentation, dropout and SLTT-K.
    """

    preset: tyro.conf.Suppress[str]
    data: str
    size: int | None = None
    test_share: float = TEST_SHARE
    train_samples: int | None = None
    test_samples: int | None = None
    validation: float = 0.0
    encoding: Literal["direct", "rate", "latency", "population"] = "direct"
    preprocessing: Literal["counts", "paper"] = "counts"
    model: Model = "convnet"
    features: tuple[int, ...] = (32, 64)
    cell: Literal["lif", "alif", "synaptic"] = "alif"
    lateral: bool = True
    tau_a: float = 100.0
    tau_spread: float = 1.0
    tau_readout: float = 20.0
    decay_readout: bool = False
    width: float = 1.0
    rule: str = "sltt"
    T: int = 6
    paper_k: tyro.conf.Suppress[int] = 2
    k: InitVar[int | None] = None
    draw: InitVar[Literal["uniform", "first", "last", "strided"] | None] = None
    scale: InitVar[Literal["paper", "unbiased"] | None] = None
    window: InitVar[int | None] = None
    chunk: InitVar[int | Literal["auto"] | None] = None
    remat: InitVar[bool] = False
    tau: float = 1.1
    v_threshold: float = 1.0
    v_reset: float | None = None
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
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    sync_batch_stats: bool = False
    select: Literal["last", "validation", "test"] = "last"
    seed: int = 0

    def __post_init__(self, k, draw, scale, window, chunk, remat):
        check_numbers(self, "train_samples", "test_samples", "batch_size", "T", "epochs", most=10**6)
        check_numbers(self, "features", most=2**16)
        check_numbers(self, "size", most=2**12)
        check_numbers(self, "width", least=1 / 64, most=64)  # the narrowest layer has 64 channels
        check_numbers(self, "seed", least=0, most=2**32 - 1)
        for name, value in vars(self).items():
            if isinstance(value, float) and not abs(value) < 3e38 and name != "tau":
                raise ValueError(f"{name} must be a number that float32 has, got {value}")
        self._check_source()
        if not self.lr > 0:
            raise ValueError(f"lr must be > 0, got {self.lr}")
        make_neuron(self)
        if self.model == RECURRENT:  # else nothing reads them
            for name in ("tau", "tau_a", "tau_readout"):
                if not 1 < getattr(self, name) < math.inf:
                    raise ValueError(
                        f"{name} is learned and must be > 1 and finite, got {getattr(self, name)}"
                    )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in 0..1, got {self.dropout}")
        flags = {"k": k, "draw": draw, "scale": scale, "window": window, "chunk": chunk}
        rule = spelt(self.rule, flags | {"remat": remat or None}, T=self.T, k=self.paper_k)
        object.__setattr__(self, "rule", rule)
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation must be in 0..1, got {self.validation}")
        if self.select == "validation" and not self.validation:
            raise ValueError("select=validation needs a share of the training samples: --validation 0.1")
        if self.preprocessing == "paper" and self.data != "dvs_cifar10":
            raise ValueError(f"preprocessing=paper is for dvs_cifar10, got {self.data!r}")
        if self.sync_batch_stats and self.model in ("mlp", RECURRENT, *NF_RESNETS):
            raise ValueError(f"{self.model} has no batch statistics to synchronise")
        if self.model in NF_RESNETS and self.dropout:
            raise ValueError(f"{self.model} has no dropout, got {self.dropout}")

    def _check_source(self):
        source = source_of(self.data)
        if source is not None:  # a run is found again from any other directory
            object.__setattr__(self, "data", str(source))
        if not 0 < self.test_share < 1:
            raise ValueError(f"test_share must be above 0 and below 1, got {self.test_share}")
        if (self.size, self.test_share) != (None, TEST_SHARE) and (source is None or source.kind == "module"):
            raise ValueError(
                "size and test_share are for data in class folders, folder:PATH or events:PATH, "
                f"got {self.data!r}"
            )


def make_neuron(config: Config) -> Neuron:
    """Builds the parameters of the neurons of a configuration."""
    spike = surrogate.SURROGATES[config.surrogate]()
    return Neuron(config.tau, config.v_threshold, config.v_reset, surrogate=spike)


def make_model(config: Config, classes: int, *, axis_name: str | None = None) -> nn.Module:
    """Builds the network of a configuration, of a `pmap` over `axis_name` if there is one."""
    dtype = None if config.precision == "float32" else jnp.dtype(config.precision)
    common = {"classes": classes, "neuron": make_neuron(config), "dtype": dtype}
    if config.sync_batch_stats:
        common["axis_name"] = axis_name
    if config.model in SMALL:
        return SMALL[config.model](features=config.features, dropout=config.dropout, **common)
    if config.model == RECURRENT:
        return models.RecurrentNet(
            features=config.features, cell=config.cell, recurrent=config.lateral, tau_a=config.tau_a,
            tau_spread=config.tau_spread, tau_readout=config.tau_readout,
            decay_readout=config.decay_readout, dropout=config.dropout, **common,
        )  # fmt: skip
    if config.model in NF_RESNETS:
        return NF_RESNETS[config.model](width=config.width, **common)
    return {**RESNETS, **VGGS}[config.model](width=config.width, dropout=config.dropout, **common)
