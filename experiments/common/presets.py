"""The recipes that can be named on the command line."""

import dataclasses
from typing import TypeVar

from common.configs import Config


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

    python experiments/train.py qtdb --rule "tbptt(100)"
    """
    return Config(
        "qtdb", "qtdb", model="recurrent", features=(36,), T=1301, tau=20.0, tau_readout=5.0,
        decay_readout=True, epochs=20, batch_size=16, optimizer="adamw", lr=1e-2,
    )  # fmt: skip


def psmnist() -> Config:
    """MNIST, a pixel a step, in an order that was drawn once; adaptive recurrent neurons.

    python experiments/train.py psmnist --rule "tbptt(56)"
    """
    return dataclasses.replace(
        qtdb(), preset="psmnist", data="psmnist", features=(64,), T=784, v_threshold=0.3, tau_a=200.0,
        tau_readout=100.0, epochs=40, batch_size=32, lr=2e-2,
    )  # fmt: skip


def fsdd() -> Config:
    """Spoken digits as level crossings of a filter bank; adaptive recurrent neurons.

    python experiments/train.py fsdd --rule sltt
    """
    return Config(
        "fsdd", "fsdd", model="recurrent", features=(128,), T=50, tau=20.0, epochs=30, batch_size=64,
        optimizer="adamw", lr=1e-2,
    )  # fmt: skip


def shd() -> Config:
    """Spiking Heidelberg Digits; adaptive recurrent neurons.

    python experiments/train.py shd --rule sltt
    """
    return dataclasses.replace(fsdd(), preset="shd", data="shd", T=100, epochs=50)


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
