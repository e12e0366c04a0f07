"""This library, by its public names: `training.make_update` of a model under a rule."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from peers import jax_program
from peers.protocol import Program
from peers.workloads import LEARNING_RATE, MOMENTUM, TAU, Layer, Workload, inputs, jax_weights
from sltt_jax import Neuron, Repeat, Rule, losses, parse_rule, training
from sltt_jax.analysis import flops
from sltt_jax.cpu import tune_xla
from sltt_jax.layers import LIF, Conv, Dense, StepBatchNorm, at_least_float32, avg_pool
from sltt_jax.models import MLP, VGG11, ConvNet, ResNet18

NEURON = Neuron(tau=TAU)


class Sequential(nn.Module):
    """The layers of a workload one after the other, for what is none of the library's networks.

    Attributes:
      layers: as `workloads.py` lists them, without residual blocks and tiles.
      dtype: of convolutions and matrix products.
      axis_name: of a `pmap`, for batch statistics over all its devices.
    """

    layers: tuple[Layer, ...]
    dtype: jnp.dtype | None = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, xs: jax.Array, *, train: bool, temporal_gradient: bool) -> jax.Array:
        """Outputs of the last layer, `[T, B, n]`, of inputs `[T, B, ...]`."""
        for kind, *args in self.layers:
            if kind == "dense":
                xs = Dense(args[0], dtype=self.dtype)(xs)
            elif kind == "conv":
                features, stride, bias = args
                xs = Conv(features, (3, 3), stride, padding=1, use_bias=bias, dtype=self.dtype)(xs)
            elif kind == "norm":
                xs = StepBatchNorm(axis_name=self.axis_name)(xs, train=train)
            elif kind == "lif":
                xs = LIF(NEURON)(xs, temporal_gradient=temporal_gradient)
            elif kind == "pool":
                xs = avg_pool(xs, args[0])
            elif kind == "flatten":
                xs = xs.reshape(*xs.shape[:2], -1)
            else:
                raise ValueError(f"no layer of this network is a {kind!r}")
        return at_least_float32(xs)


def model(workload: Workload, dtype: jnp.dtype | None, axis_name: str | None = None) -> nn.Module:
    """The network of a workload, as the library has it, of a `pmap` over `axis_name` if there is one."""
    kinds = [layer[0] for layer in workload.layers]
    features = tuple(layer[1] for layer in workload.layers if layer[0] in ("dense", "conv"))
    if "block" in kinds:
        return ResNet18(classes=workload.classes, neuron=NEURON, dtype=dtype, axis_name=axis_name)
    if "tile" in kinds:
        return VGG11(classes=workload.classes, neuron=NEURON, dtype=dtype, axis_name=axis_name)
    if workload.classes and "conv" not in kinds:
        return MLP(features[:-1], workload.classes, NEURON, dtype=dtype)
    if workload.classes and kinds.count("pool") == kinds.count("conv"):
        return ConvNet(features[:-1], workload.classes, NEURON, dtype=dtype, axis_name=axis_name)
    return Sequential(workload.layers, dtype, axis_name)


def make_update(workload: Workload, rule: Rule, precision: str, axis_name: str | None = None):
    """`(update, state, batch)` of a workload, all of it before the first update.

    With an `axis_name` it is for `training.parallel`, and the samples are the first axis of all inputs.
    """
    net = model(workload, None if precision == "float32" else jnp.dtype(precision), axis_name)
    x, y = inputs(workload)
    time_first = lambda x: x if axis_name is None or workload.static else x.swapaxes(0, 1)
    encode = lambda x, key: Repeat(x, workload.T) if workload.static else time_first(x)
    optimizer = optax.sgd(LEARNING_RATE, momentum=MOMENTUM)
    step_loss = losses.cross_entropy if workload.classes else lambda outputs, y: outputs.mean()
    init = partial(training.init_state, net, optimizer, encode)
    state = jax.jit(init)(jax.random.key(0), x)
    params = jax.tree_util.tree_map_with_path(
        lambda path, p: jnp.asarray(jax_weights(workload, path[-1].key, p.shape), p.dtype), state.params
    )
    update = training.make_update(net, rule, step_loss, optimizer, encode, axis_name=axis_name)
    return update, state._replace(params=params), {"x": time_first(x), "y": y}


def program(workload: Workload, rule: str, precision: str) -> Program:
    """An update under a rule, compiled."""
    tune_xla()
    found = parse_rule(rule)
    update, state, batch = make_update(workload, found, precision)
    count = partial(flops, backward_share=found.backward_share(workload.T))
    return jax_program.compile_update(update, state, batch, loss_of=lambda metrics: metrics.loss, flops=count)


about = partial(jax_program.about, "sltt-jax", "flax")
