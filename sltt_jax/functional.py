"""Modules of Flax Linen, Flax NNX and Equinox as the pure functions that rules take.

A Linen network's `__call__(xs, *, train, temporal_gradient)` works on blocks `[T, B, ...]`; its membranes and
batch statistics are collections of variables, and together they are the `state` of the rules: `init`,
`at_rest`, `applier`.

Modules of NNX and Equinox are written for one time step, as cells are (`sltt_jax.over_time`), and know
nothing of rules and blocks: they are called as `module(state, x) -> (state, output)`, on arrays `[B, ...]`,
with a pytree of all membranes as the state. For instance

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(64, 128, rngs=rngs)
            self.norm = nnx.BatchNorm(128, rngs=rngs)
            self.readout = nnx.Linear(128, 10, rngs=rngs)

        def __call__(self, v, x):
            v, spikes = lif_step(v, self.norm(self.hidden(x)), Neuron(tau=2.0))
            return v, self.readout(spikes)

    apply, params, rest = from_nnx(Net(nnx.Rngs(0)))
    state = jnp.zeros((32, 128)), rest
    (loss, aux), grads = sltt().value_and_grad(apply, losses.cross_entropy)(params, state, inputs, labels)
"""

import contextlib
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from sltt_jax.blocks import Apply, PyTree
from sltt_jax.cell_blocks import over_time
from sltt_jax.layers import BATCH_STATS, NormedConv, Recurrent, ScaledWSConv
from sltt_jax.traces import Traces, synapse


def _compiled_once(f):
    """Compiles `f(model, *arrays)`, once for every network and shape; whoever calls it again traces nothing.

    A network that holds arrays, such as one `tau` for every channel, is no key of a program; `f` then runs as
    it is.
    """
    compiled = jax.jit(f, static_argnums=0)

    @functools.wraps(f)
    def call(model, *arrays):
        try:
            hash(model)
        except TypeError:
            return f(model, *arrays)
        return compiled(model, *arrays)

    return call


def cast_kernels(model: nn.Module, params: PyTree) -> PyTree:
    """Casts the kernels of a network to its `dtype`, once for all the time steps of an update.

    A rule sums the gradients of half precision parameters in float32, so they are what they were. It is done
    for networks that use whatever is named "kernel" in their `dtype` alone, which say so by
    `kernels_in_dtype = True` in their class; the parameters of others are returned as they are.
    """
    if getattr(model, "dtype", None) is None or not getattr(model, "kernels_in_dtype", False):
        return params
    cast = lambda path, p: p.astype(model.dtype) if path[-1].key == "kernel" else p
    return jax.tree_util.tree_map_with_path(cast, params)


@_compiled_once
def init(model: nn.Module, key: jax.Array, x: jax.Array) -> tuple[PyTree, PyTree]:
    """Draws the parameters of a network; it is compiled, and so takes one program instead of dozens.

    Args:
      model: the network.
      key: draws the parameters.
      x: the input of one step, arrays `[B, ...]`; only shapes and types matter, and integers count as
        float32.

    Returns:
      `(params, state)`; the state is a dict of collections, its membranes at rest and of the batch size of
      `x`.
    """
    block = jax.tree.map(lambda a: a[None], _floating(x))
    variables = model.init(key, block, train=False, temporal_gradient=True)
    params = variables.pop("params") if "params" in variables else {}
    return params, variables


def kept(model: nn.Module) -> tuple[str, ...]:
    """Names the collections that go from batch to batch; all others start anew with every batch.

    They are the batch statistics, and what a network lists in an attribute `kept` of its class.
    """
    return (BATCH_STATS, *getattr(model, "kept", ()))


def at_rest(model: nn.Module, state: PyTree, x: jax.Array) -> PyTree:
    """Puts membranes, and whatever else is not `kept`, at rest.

    Nothing of the network is computed for it; after `init` for the same shape it is not traced either.

    Args:
      model: the network.
      state: its collections; only those that are `kept` need be there.
      x: the input of one step, `[B, ...]`, of the batch to come.
    """
    return {**state, **_fresh(model, x)}


@_compiled_once
def _fresh(model, x):
    _, state = init(model, jax.random.key(0), x)
    return {name: value for name, value in state.items() if name not in kept(model)}


def applier(
    model: nn.Module, *, train: bool = True, key: jax.Array | None = None, record: tuple[str, ...] = ()
) -> Apply:
    """Builds `apply(params, state, xs, *, temporal_gradient) -> (outputs, state)` of a network.

    Integer inputs (event counts) become float32 here, a block at a time, and so never all at once.

    Args:
      model: the network.
      train: batch statistics and dropout as in training.
      key: draws the dropout masks; the same for all time steps of an update.
      record: collections that layers write and nothing carries on ("firing_rate"); with any, the outputs are
        `(outputs, {collection: values})`.

    Raises:
      ValueError: (when `apply` is called) a `flax.linen.Dropout` draws a mask with a time axis.
    """

    def apply(params, state, xs, *, temporal_gradient):
        xs = _floating(xs)
        with _learned_by_traces(temporal_gradient), _no_masks_with_time(xs):
            outputs, changed = model.apply(
                {"params": params, **state},
                xs,
                train=train,
                temporal_gradient=temporal_gradient,
                mutable=[*state, *record],
                rngs=None if key is None else {"dropout": key},
            )
        state = {name: changed[name] for name in state}
        return (outputs, {name: changed.get(name, {}) for name in record}) if record else outputs, state

    return apply


def _no_masks_with_time(xs):
    """Has a Linen `Dropout` refused whose mask has the time axis of the block `xs`, alone or in one with B.

    Every block of an update has the same key, so such masks would repeat with each, and depend on the chunk.
    """
    C, *batch = jax.tree.leaves(xs)[0].shape[:2]
    merged = [C * B for B in batch if C > 1]

    def intercept(call, args, kwargs, context):
        layer = context.module
        if context.method_name == "__call__" and isinstance(layer, nn.Dropout) and 0 < layer.rate < 1:
            inputs, deterministic = _of_dropout(*args, **kwargs)
            shared = {dim % inputs.ndim for dim in layer.broadcast_dims}
            off = layer.deterministic if deterministic is None else deterministic
            if not off and 0 not in shared and len(inputs) in (C, *merged):
                raise ValueError(
                    f"the Dropout {'/'.join(layer.path)} draws another mask for each time step of a block, "
                    f"{inputs.shape}, and the same in each block, so that it depends on the chunk: take "
                    "sltt_jax.layers.Dropout, with one mask for all T steps"
                )
        return call(*args, **kwargs)

    return nn.intercept_methods(intercept)


def _of_dropout(inputs, deterministic=None, rng=None):  # named as in its call
    del rng
    return inputs, deterministic


def _learned_by_traces(temporal_gradient):
    """Has the layers that are called within learn by traces, if the rule has given some."""
    if not isinstance(temporal_gradient, Traces):
        return contextlib.nullcontext()

    alone = False  # a layer is being called by itself, and not by the network

    def intercept(call, args, kwargs, context):
        layer = context.module
        if alone or context.method_name != "__call__" or isinstance(layer, Recurrent):
            return call(*args, **kwargs)
        weights = layer.variables.get("params", {})
        if not isinstance(layer, nn.Dense | nn.Conv | NormedConv | ScaledWSConv):
            for name, w in weights.items():
                if isinstance(w, jax.Array) and w.ndim > 1:
                    raise ValueError(
                        f"ottt has no traces for the weights {name!r} of a {type(layer).__name__}: only "
                        "Dense, Conv, NormedConv, ScaledWSConv and Recurrent keep them"
                    )
            return call(*args, **kwargs)
        layer = layer.clone(parent=None)

        def product(xs, weights):
            nonlocal alone
            alone = True
            try:
                return layer.apply({"params": weights}, xs)
            finally:
                alone = False

        (xs,) = args
        return synapse(product, xs, weights, temporal_gradient=temporal_gradient)

    return nn.intercept_methods(intercept)


def from_nnx(model) -> tuple[Apply, PyTree, PyTree]:
    """Makes a pure function of a module of Flax NNX; see the module's docstring for an example.

    Args:
      model: an `nnx.Module`, called as `model(state, x) -> (state, output)` of one time step. It is read once
        and not changed: after `model.eval()` it makes another `apply`, of the same parameters and state.

    Returns:
      `(apply, params, rest)`: the network, its `nnx.Param`s and all other variables, such as batch statistics
      and the keys of dropout, which go from step to step: each step draws its own masks, and on several
      devices, by `training.make_update`, each device. The state of `apply` is `(state, rest)`.
      `nnx.update(model, params, rest)` puts what was learnt back.
    """
    from flax import nnx

    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def step(state, x, params):
        state, rest = state
        # A copy: NNX lets no module of one trace be changed in another.
        module = nnx.merge(graph, params, rest, copy=True)
        state, output = module(state, x)
        return (state, nnx.state(module, nnx.Not(nnx.Param))), output

    return _of_steps(step), params, rest


def from_equinox(model) -> tuple[Apply, PyTree]:
    """Makes a pure function of a module of Equinox.

    Args:
      model: an `equinox.Module`, called as `model(state, x) -> (state, output)` of one time step. The layers
        of Equinox are of one sample, so it calls them as `jax.vmap(layer)(x)`.

    Returns:
      `(apply, params)`: the network, and its floating point arrays in a module whose other leaves are None;
      `equinox.combine(params, model)` puts what was learnt back.

    Raises:
      ModuleNotFoundError: Equinox is not installed.
    """
    try:
        import equinox as eqx
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("from_equinox needs Equinox: pip install equinox") from error

    params, static = eqx.partition(model, eqx.is_inexact_array)
    step = lambda state, x, params: eqx.combine(params, static)(state, x)
    return _of_steps(step), params


def _of_steps(step) -> Apply:
    block = over_time(step)

    def apply(params, state, xs, *, temporal_gradient):
        state, outputs = block(state, _floating(xs), params, temporal_gradient=temporal_gradient)
        return outputs, state

    return apply


def _floating(xs):
    """Makes the integers of a pytree, such as event counts, float32."""
    cast = lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.integer) else x
    return jax.tree.map(cast, xs)
