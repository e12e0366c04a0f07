"""Spiking networks in Linen, `model(xs, train=..., temporal_gradient=...)` on blocks `[T, B, ...]`."""

from sltt_jax.models.convnet import ConvNet
from sltt_jax.models.mlp import MLP
from sltt_jax.models.nf_resnet import NFResNet, NFResNet34, NFResNet50, NFResNet101
from sltt_jax.models.recurrent import RecurrentNet
from sltt_jax.models.resnet import ResNet, ResNet18, ResNet34
from sltt_jax.models.spiking_resnet import SpikingResNet, SpikingResNet18, SpikingResNet34
from sltt_jax.models.vgg import VGG, VGG11, VGG13, VGG16, VGG19

__all__ = [
    "MLP",
    "VGG",
    "VGG11",
    "VGG13",
    "VGG16",
    "VGG19",
    "ConvNet",
    "NFResNet",
    "NFResNet34",
    "NFResNet50",
    "NFResNet101",
    "RecurrentNet",
    "ResNet",
    "ResNet18",
    "ResNet34",
    "SpikingResNet",
    "SpikingResNet18",
    "SpikingResNet34",
]
