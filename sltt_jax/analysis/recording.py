"""Looking into the layers of a Linen network while it runs, without touching its code."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from sltt_jax import functional
from sltt_jax.analysis.gradients import step_gradients
from sltt_jax.analysis.temporal_part import temporal_factors
from sltt_jax.blocks import PyTree, run
from sltt_jax.cell_layers import LIF, MEMBRANE, Cells
from sltt_jax.layers import at_least_float32
from sltt_jax.rules import Rule, StepLoss

# `observe(module, variables, xs, ys) -> {name: [C, ...]} or None`, see `record`.
Observe = Callable[[nn.Module, Mapping[str, Any], jax.Array, jax.Array], dict[str, jax.Array] | None]

_RECORD = "record"


def record(
    model: nn.Module,
    new_observer: Callable[[], Observe],
    params: PyTree,
    state: PyTree,
    inputs: PyTree,
    *,
    train: bool = False,
    key: jax.Array | None = None,
) -> dict[str, dict[str, jax.Array]]:
    """Runs a network over all time steps and returns what an observer saw of its layers.

    A pure function of arrays, to be compiled; one step is in memory at a time, and what was seen of all.

    Args:
      model: the network.
      new_observer: makes `observe(module, variables, xs, ys)`, which is called after each module's
        `__call__`, in the order in which they end, with the module's variables as they were before; it
        returns arrays with the time axis of the block first, or None for a module that does not matter.
      params, state, inputs: as for a rule.
      train: batch statistics and dropout as in training.
      key: draws the dropout masks.

    Returns:
      `{"path/of/module": {name: [T, ...]}}`. Of a module that is called several times, the sum.

    Raises:
      ValueError: no module mattered.
    """
    apply = functional.applier(model, train=train, key=key, record=(_RECORD,))

    def watched(*args, **kwargs):
        observe, seen = new_observer(), []

        def interceptor(call, args, kwargs, context):
            if context.method_name != "__call__" or not args:
                return call(*args, **kwargs)
            module = context.module
            before = jax.tree.map(lambda a: a, module.variables)  # a copy: the call changes what is in it
            ys = call(*args, **kwargs)
            for name, value in (observe(module, before, args[0], ys) or {}).items():
                module.sow(_RECORD, name, value, init_fn=lambda: 0, reduce_fn=lambda a, b: a + b)
                seen.append(name)
            if not module.path and not seen:
                raise ValueError(f"{type(model).__name__} has none of the layers that are looked for")
            return ys

        with nn.intercept_methods(interceptor):
            return apply(*args, **kwargs)

    (_, recorded), _ = run(watched, params, state, inputs)
    seen = {}
    for path, value in jax.tree_util.tree_leaves_with_path(recorded[_RECORD]):
        *module, name = (key.key for key in path)
        seen.setdefault("/".join(module), {})[name] = value
    return seen


def layer_temporal_factors(
    model: nn.Module,
    params: PyTree,
    state: PyTree,
    inputs: PyTree,
    *,
    train: bool = False,
    key: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Returns `temporal_factors` of every LIF layer, by its path, `[T, B, ...]` each; `lag_norms` takes them.

    Layers of other cells or with lateral weights have no such diagonal and are left out. Arguments as of
    `record`.
    """

    def observe(module, variables, xs, ys):
        del ys
        if not isinstance(module, LIF) or "y" in variables[MEMBRANE]:
            return None
        return {"factors": temporal_factors(variables[MEMBRANE]["v"], at_least_float32(xs), module.neuron)}

    seen = record(model, lambda: observe, params, state, inputs, train=train, key=key)
    return {path: values["factors"] for path, values in seen.items()}


def layer_traces(
    model: nn.Module,
    params: PyTree,
    state: PyTree,
    inputs: PyTree,
    *,
    train: bool = False,
    key: jax.Array | None = None,
) -> dict[str, dict[str, jax.Array]]:
    """Returns what every layer of cells was in after each step, and its outputs, for plots.

    Arguments as of `record`.

    Returns:
      `{path: {"v": [T, B, ...], ..., "outputs": [T, B, ...]}}`, the names of the states as in the layer: "v"
      is the membrane.
    """

    def observe(module, variables, xs, ys):
        del variables, xs
        if not isinstance(module, Cells):
            return None
        # `record` goes step by step, so what the layer holds now is the state after this one.
        return {**{k: v[None] for k, v in module.variables[MEMBRANE].items()}, "outputs": ys}

    return record(model, lambda: observe, params, state, inputs, train=train, key=key)


def layer_error_signals(
    model: nn.Module, rule: Rule, step_loss: StepLoss, *, train: bool = True, key: jax.Array | None = None
) -> Callable[..., dict[str, jax.Array]]:
    """Builds `f(params, state, inputs, target, key=None) -> {path: [T, B, ...]}`, for every layer of cells.

    They are the error signals dL/du[t] of a rule, taken as the gradient with respect to something that is
    added to the currents of each neuron at each step, and is 0. `jax.vmap(report)` compares those of two
    rules, by layer and step.

    Args:
      model: the network.
      rule: the rule.
      step_loss: as for the rule.
      train: batch statistics and dropout as in training.
      key: draws the dropout masks; that of `f` draws the steps of `sltt_k`.
    """
    network = functional.applier(model, train=train, key=key)

    def f(params, state, inputs, target, key=None):
        membranes = jax.tree_util.tree_leaves_with_path(state[MEMBRANE])
        nothing = {"/".join(k.key for k in path[:-1]): jnp.zeros_like(v) for path, v in membranes}

        def apply(added, state, xs, *, temporal_gradient):
            def interceptor(call, args, kwargs, context):
                if not isinstance(context.module, Cells) or context.method_name != "__call__":
                    return call(*args, **kwargs)
                more = added["/".join(context.module.path)][None]
                return call(args[0] + more.astype(args[0].dtype), *args[1:], **kwargs)

            with nn.intercept_methods(interceptor):
                return network(params, state, xs, temporal_gradient=temporal_gradient)

        return step_gradients(rule, apply, step_loss)(nothing, state, inputs, target, key)

    return f
