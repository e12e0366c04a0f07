"""Networks that NIR can say, for the tests of both ways."""

import dataclasses
import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sltt_jax import Neuron, functional
from sltt_jax.layers import LI, LIF, Conv, Dense, Recurrent, StepBatchNorm, Synaptic, avg_pool
from sltt_jax.models import RecurrentNet

HARD = Neuron(tau=1.7, v_reset=0.0)


class Sequence(nn.Module):
    """Layers one after the other; those that know time are cells, and functions are called as they are."""

    layers: tuple

    @nn.compact
    def __call__(self, xs, *, train, temporal_gradient):
        for layer in self.layers:
            if isinstance(layer, StepBatchNorm):
                xs = layer(xs, train=train)
            elif isinstance(layer, nn.Dense | nn.Conv) or not isinstance(layer, nn.Module):
                xs = layer(xs)
            else:
                xs = layer(xs, temporal_gradient=temporal_gradient)
        return xs


flatten = lambda xs: xs.reshape(*xs.shape[:2], -1)
pool = partial(avg_pool, size=2)
sum_pool = lambda xs: 4 * pool(xs)
OF_CHANNELS = Neuron(
    tau=jnp.array([[[[1.2, 3.0, 9.0]]]]), v_threshold=jnp.array([[[[0.5, 0.6, 0.7]]]]), v_reset=-0.2
)
NO_LEAK, RESTING = Neuron(tau=math.inf, v_reset=0.0), Neuron(tau=3.0, v_reset=0.25, v_threshold=0.9)
BY_TAU = dataclasses.replace(RESTING, decay_input=True)
IMAGES, VECTORS = (2, 12, 8, 2), (2, 7)

NETWORKS = {
    "vectors": (
        Sequence((
            Dense(9), LIF(NO_LEAK), Dense(9, use_bias=False), LIF(BY_TAU),
            Dense(9), Synaptic(BY_TAU, tau_syn=3.0),
            Dense(9), Recurrent(LIF(RESTING)), Dense(9), Recurrent(Synaptic(HARD)),
            Dense(5), LI(4.0, decay_input=True), Dense(3), LI(2.5),
        )),
        VECTORS,
    ),
    "maps": (
        Sequence((
            Conv(4, (3, 3), (2, 1), "VALID"), LIF(RESTING),
            Conv(3, (3, 3), kernel_dilation=2), StepBatchNorm(), sum_pool, LIF(OF_CHANNELS),
            pool, flatten, Dense(4),
        )),
        IMAGES,
    ),
    "learned": (RecurrentNet((9,), 4, cell="synaptic", neuron=HARD, readout="lif"), VECTORS),
}  # fmt: skip


def drawn(model, shape, T=12):
    """Parameters and statistics in double precision, and inputs, under which all layers fire."""
    x = jnp.zeros(shape)
    params, state = jax.eval_shape(partial(functional.init, model), jax.random.key(0), x)
    rng = np.random.default_rng(3)
    low = {"var": 0.5, "logit_decay": 0.0, "logit_decay_syn": 0.0, "bias": 0.0}
    draw = lambda path, a: jnp.asarray(rng.uniform(low.get(path[-1].key, -0.9), 1, a.shape))
    params, state = jax.tree_util.tree_map_with_path(
        draw, (params, {"batch_stats": state.get("batch_stats", {})})
    )
    xs = jnp.asarray(rng.uniform(0, 1, (T, *shape)))
    return params, functional.at_rest(model, {k: v for k, v in state.items() if v}, xs[0]), xs


def channels_first(a):
    return np.moveaxis(np.asarray(a), -1, 2)
