"""The settings of an experiment, and the presets that can be named on the command line."""

import dataclasses
import math
from dataclasses import InitVar
from typing import Literal, TypeVar

import flax.linen as nn
import jax.numpy as jnp
import tyro
from common.command import check_numbers
from common.rule_flags import spelt

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

Model = Literal[
    "mlp", "convnet", "recurrent", "resnet18", "resnet34", "vgg11", "vgg13", "vgg16", "vgg19",
    "nf_resnet34", "nf_resnet50", "nf_resnet101",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on.

    Attributes:
      preset: the preset that it started from.
      data: data set, see data_sets.py.
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
        likely to be fast, of sltt.
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
      weight_decay: on all parameters but learned time constants.
      precision: of convolutions and matrix products; all else is float32.
      sync_batch_stats: batch statistics over all devices, in place of each its own.
      select: what the reported test accuracy is of: the last epoch, the best on the validation samples or, as
        in the paper, the best on the test samples themselves.
      seed: of parameters, sample order, augmentation, dropout and SLTT-K.
    """

    preset: tyro.conf.Suppress[str]
    data: str
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
        check_numbers(self, "width", least=1 / 64, most=64)  # the narrowest layer has 64 channels
        check_numbers(self, "seed", least=0, most=2**32 - 1)
        if not self.features:
            raise ValueError("features needs at least one value")
        for name, value in vars(self).items():
            if isinstance(value, float) and not abs(value) < 3e38 and name != "tau":
                raise ValueError(f"{name} must be a number that float32 has, got {value}")
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


def digits() -> Config:
    """8x8 handwritten digits that come with scikit-learn, a convolutional network.

    python experiments/train.py digits
    """
    return Config("digits", "digits", lr=0.05, weight_decay=5e-4, mse_weight=0.05)


def digits_mlp() -> Config:
    """Digits again, a network of two fully connected layers; at a threshold of 1 its second starts silent.

    python experiments/train.py digits_mlp
    """
    return Config(
        "digits_mlp", "digits", model="mlp", features=(256, 256), v_threshold=0.5,
        optimizer="adamw", lr=2e-3, weight_decay=1e-2,
    )  # fmt: skip


def mnist() -> Config:
    """MNIST, a convolutional network.

    python experiments/train.py mnist
    """
    return Config("mnist", "mnist", T=4, epochs=7, batch_size=64, lr=0.1, weight_decay=1e-4, mse_weight=0.05)


def fashion_mnist() -> Config:
    """Fashion-MNIST, a convolutional network.

    python experiments/train.py fashion_mnist
    """
    return dataclasses.replace(mnist(), preset="fashion_mnist", data="fashion_mnist", epochs=8)


def nmnist() -> Config:
    """N-MNIST, a convolutional network on ten frames of equal event number.

    python experiments/train.py nmnist
    """
    return Config(
        "nmnist", "nmnist", features=(32, 64, 128), T=10, epochs=20, batch_size=50,
        dropout=0.1, lr=0.05, weight_decay=5e-4, mse_weight=0.05,
    )  # fmt: skip


def qtdb() -> Config:
    """Parts of heart beats in electrocardiograms, a label at each of 1,301 steps; adaptive recurrent neurons.

    python experiments/train.py qtdb --rule sltt --chunk 20
    """
    return Config(
        "qtdb", "qtdb", model="recurrent", features=(36,), T=1301, tau=20.0, epochs=60, batch_size=64,
        optimizer="adamw", lr=1e-2,
    )  # fmt: skip


def psmnist() -> Config:
    """MNIST, a pixel a step, in an order that was drawn once; adaptive recurrent neurons.

    python experiments/train.py psmnist --rule "tbptt(28)"
    """
    return dataclasses.replace(
        qtdb(), preset="psmnist", data="psmnist", features=(128,), T=784, epochs=20, batch_size=128
    )


def fsdd() -> Config:
    """Spoken digits as level crossings of a filter bank; adaptive recurrent neurons.

    python experiments/train.py fsdd --rule sltt
    """
    return dataclasses.replace(qtdb(), preset="fsdd", data="fsdd", features=(128,), T=50, epochs=30)


def shd() -> Config:
    """Spiking Heidelberg Digits; adaptive recurrent neurons.

    python experiments/train.py shd --rule sltt
    """
    return dataclasses.replace(qtdb(), preset="shd", data="shd", features=(128,), T=100, epochs=50)


def ssc() -> Config:
    """Spiking Speech Commands; adaptive recurrent neurons.

    python experiments/train.py ssc --rule sltt
    """
    return dataclasses.replace(shd(), preset="ssc", data="ssc", epochs=20)


def cifar10() -> Config:
    """CIFAR-10, ResNet-18 (Meng et al. 2023, table 1).

    python experiments/train.py cifar10 --rule sltt
    Paper: sltt 94.44 % mean, 94.59 % best; 1.09 GB, 4.58 h. bptt 94.60 %, 3.00 GB, 6.35 h. One V100 or A100.
    """
    return Config(
        "cifar10", "cifar10", model="resnet18", T=6, epochs=200, batch_size=128,
        lr=0.1, weight_decay=5e-5, mse_weight=0.05, seed=2022,
    )  # fmt: skip


def cifar100() -> Config:
    """CIFAR-100, ResNet-18 (Meng et al. 2023, table 1).

    python experiments/train.py cifar100 --rule sltt
    Paper: sltt 74.38 % mean, 74.67 % best; 1.12 GB, 4.68 h. bptt 73.80 %, 3.00 GB, 6.39 h.
    """
    return dataclasses.replace(cifar10(), preset="cifar100", data="cifar100", weight_decay=5e-4)


def dvs_cifar10() -> Config:
    """DVS-CIFAR10 (CIFAR10-DVS), VGG-11 (Meng et al. 2023, table 1).

    python experiments/train.py dvs_cifar10 --rule sltt          (or --rule "sltt_k(2)")
    Paper: sltt 77.30 % best without augmentation; 1.07 GB, 3.43 h. bptt 73.60 %, 3.70 GB, 4.47 h.
    """
    return Config(
        "dvs_cifar10", "dvs_cifar10", model="vgg11", T=10, epochs=300, batch_size=128, dropout=0.3,
        lr=0.05, weight_decay=5e-4, mse_weight=0.05, mse_target="one_hot", seed=2022,
    )  # fmt: skip


def dvs_gesture() -> Config:
    """DVS128-Gesture, VGG-11 (Meng et al. 2023, table 1).

    python experiments/train.py dvs_gesture --rule sltt          (or --rule "sltt_k(4)")
    Paper: sltt 97.92 % best; 1.07 GB. bptt 97.22 %, 5.82 GB.
    """
    return Config(
        "dvs_gesture", "dvs_gesture", model="vgg11", T=20, paper_k=4, epochs=300, batch_size=16, dropout=0.4,
        lr=0.1, weight_decay=5e-4, mse_weight=0.05, seed=2022,
    )  # fmt: skip


def imagenet_stage1() -> Config:
    """ImageNet, the first of two stages: one time step, where all rules are the same.

    python experiments/train.py imagenet_stage1 --model nf_resnet34          (or nf_resnet50, nf_resnet101)
    """
    return Config(
        "imagenet_stage1", "imagenet", model="nf_resnet34", T=1, epochs=100, batch_size=256,
        lr=0.1, weight_decay=1e-5, seed=2022,
    )  # fmt: skip


def imagenet_stage2() -> Config:
    """ImageNet, the second stage: six time steps, from the first's parameters (Meng et al. 2023, table 1).

    python experiments/train.py imagenet_stage2 --model nf_resnet34 --rule "sltt_k(1)"
    Paper, NF-ResNet-34: sltt 66.19 %, 8.47 GB, 66.9 h; sltt_k(1) 66.17 %, 32.03 h; bptt 66.47 %, 28.41 GB,
    73.8 h.
    With --init-from runs/imagenet_stage1, the workdir of the first stage.
    """
    return dataclasses.replace(
        imagenet_stage1(), preset="imagenet_stage2", T=6, epochs=30, lr=0.001, weight_decay=0.0
    )


DIGITS = digits, digits_mlp
IMAGES = mnist, fashion_mnist, cifar10, cifar100, imagenet_stage1, imagenet_stage2
EVENTS = nmnist, dvs_cifar10, dvs_gesture
SEQUENCES = qtdb, psmnist, fsdd, shd, ssc
PRESETS = {preset.__name__: preset for preset in (*DIGITS, *IMAGES, *EVENTS, *SEQUENCES)}

AnyConfig = TypeVar("AnyConfig", bound=Config)


def reduced(config: AnyConfig) -> AnyConfig:
    """Makes a recipe small enough for two cores and a few minutes: narrow, few samples, two epochs."""
    return dataclasses.replace(
        config,
        width=config.width / 8,
        features=tuple(max(n // 8, 1) for n in config.features),
        train_samples=min(config.train_samples or 128, 128),
        test_samples=min(config.test_samples or 64, 64),
        batch_size=min(config.batch_size, 16),
        epochs=min(config.epochs, 2),
    )


def make_neuron(config: Config) -> Neuron:
    """Builds the parameters of the neurons of a configuration."""
    spike = surrogate.SURROGATES[config.surrogate]()
    return Neuron(tau=config.tau, v_threshold=config.v_threshold, surrogate=spike)


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
            tau_spread=config.tau_spread, tau_readout=config.tau_readout, dropout=config.dropout, **common,
        )  # fmt: skip
    if config.model in NF_RESNETS:
        return NF_RESNETS[config.model](width=config.width, **common)
    return {**RESNETS, **VGGS}[config.model](width=config.width, dropout=config.dropout, **common)
