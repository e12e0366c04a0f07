"""Small networks of the kinds that PyTorch weights are read into, with random weights."""

from functools import partial

import jax
import numpy as np

from sltt_jax import functional
from sltt_jax.models import VGG, NFResNet, ResNet
from sltt_jax.models.torch_weights import to_torch
from sltt_jax.neurons import Neuron

MODELS = {
    "resnet": (ResNet, {"blocks": (2, 1)}, 8, 3),
    "vgg": (VGG, {"convs": (1, 2, 1, 1, 1)}, 96, 2),
    "nf_resnet": (NFResNet, {"blocks": (2, 1), "bottleneck": False}, 32, 3),
    "nf_resnet_bottleneck": (NFResNet, {"blocks": (2, 1), "bottleneck": True}, 32, 3),
}


def model_and_input(name, neuron=Neuron(tau=1.5)):  # noqa: B008
    cls, fields, size, channels = MODELS[name]
    return cls(classes=5, neuron=neuron, width=1 / 16, **fields), np.zeros((2, size, size, channels))


def random_variables(name, dtype=np.float64):
    """Random parameters and batch statistics, as numpy arrays."""
    model, x = model_and_input(name)
    x = jax.ShapeDtypeStruct(x.shape, np.float32)
    params, state = jax.eval_shape(partial(functional.init, model), jax.random.key(0), x)
    rng = np.random.default_rng(0)
    draw = lambda p: (1.0 + 0.3 * rng.standard_normal(p.shape)).astype(dtype)
    return jax.tree.map(draw, (params, {k: v for k, v in state.items() if k == "batch_stats"}))


def state_dict(name="resnet", dtype=np.float64):
    return to_torch(model_and_input(name)[0], *random_variables(name, dtype))
