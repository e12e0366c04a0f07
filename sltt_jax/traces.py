"""Presynaptic traces, which carry a part of the temporal gradient forward in time (OTTT).

    a[t] = decay a[t-1] + x[t]                  x: what enters the weights of a layer, spikes or currents

The rule `ottt` calls a network with a `Traces` in the place of `temporal_gradient=False`, and the layers that
have weights take theirs from it: `synapse(product, xs, weights, temporal_gradient=...)`. The Dense and Conv
layers of Linen networks (`functional.applier`) and the lateral weights of `recurrent` do so by themselves.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from sltt_jax.blocks import PyTree, at_least_float32
from sltt_jax.varying import vary_like


class Traces:
    """Traces of a network in the order in which its layers ask for them; false, as `temporal_gradient=False`.

    Attributes:
      decay: what a trace keeps in a step, 0..1.
      after: the traces after the block so far, each `[B, ...]`.
    """

    def __init__(self, decay: float, before: Sequence[jax.Array] | None = None):
        """Starts from the traces `before` the block, or from zeros where none are known yet."""
        self.decay, self.after = decay, []
        self._before = before

    def __bool__(self) -> bool:
        return False

    def through(self, xs: jax.Array) -> jax.Array:
        """Returns the next layer's trace at each step of a block, a constant, as `xs` `[C, B, ...]`.

        It is at least float32.
        """
        xs = at_least_float32(jax.lax.stop_gradient(xs))
        if self._before is None:
            start = vary_like(jnp.zeros_like(xs[0]), xs)
        else:
            start = self._before[len(self.after)]

        def step(a, x):
            a = self.decay * a + x
            return a, a

        end, traces = jax.lax.scan(step, start, xs, unroll=min(len(xs), 8))
        self.after.append(end)
        return traces


def synapse(
    product: Callable[[jax.Array, PyTree], PyTree],
    xs: jax.Array,
    weights: PyTree,
    *,
    temporal_gradient: bool | Traces,
) -> PyTree:
    """Computes `product(xs, weights)`, whose weights learn by the trace of `xs` under `ottt`.

        d loss / d weights = sum over t of  (d loss[t] / d y[t]) (d product(a[t], weights) / d weights)

    and by `xs` itself under the other rules. The gradient that goes on to `xs` is the same under all.

    Args:
      product: `(xs [C, B, ...], weights) -> ys [C, B, ...]`, linear in xs but for a bias: a matrix product, a
        convolution, with standardised weights or not; `ys` may be a pytree. Parameters that it closes over
        learn by `xs` under all rules.
      xs: what enters, `[C, B, ...]`.
      weights: a pytree.
      temporal_gradient: as the network was called.

    Returns:
      `ys`.
    """
    if not isinstance(temporal_gradient, Traces):
        return product(xs, weights)
    trace = temporal_gradient.through(xs).astype(xs.dtype)
    ys = product(xs, jax.lax.stop_gradient(weights))
    product, closed = jax.closure_convert(product, trace, weights)
    return _learned_by(product, ys, trace, weights, closed)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _learned_by(product, ys, trace, weights, closed):
    """Returns `ys`; its derivative by the weights is that of `product(trace, weights, *closed)`."""
    del product, trace, weights, closed
    return ys


@_learned_by.defjvp
def _learned_by_jvp(product, primals, tangents):
    _, trace, weights, closed = primals
    along, _, change, _ = tangents
    _, learned = jax.jvp(lambda weights: product(trace, weights, *closed), (weights,), (change,))
    return _learned_by(product, *primals), jax.tree.map(jnp.add, along, learned)


def with_traces(apply: Callable, decay: float) -> Callable:
    """Makes a network whose state is `(state, traces)`, from one that takes `Traces`.

    Raises:
      ValueError: (when it is called) no layer of the network has asked for a trace.
    """

    def traced(params, state, xs, *, temporal_gradient):
        del temporal_gradient
        state, before = state
        traces = Traces(decay, before)
        outputs, state = apply(params, state, xs, temporal_gradient=traces)
        _check_taken(traces)
        return outputs, (state, tuple(traces.after))

    return traced


def zero_traces(apply: Callable, decay: float, params: Any, state: Any, x: Any) -> tuple[jax.Array, ...]:
    """Makes the traces before the first step: zeros, of the shapes that the layers of a network ask for.

    Args:
      apply, params, state: the network.
      x: the input of one step, `[B, ...]`; only its shapes matter.

    Raises:
      ValueError: no layer of the network asks for a trace, or a parameter of two or more axes learns by
        another way than a trace.
    """

    def first(params, state, x):
        traces = Traces(decay)
        state, block = vary_like(state, (params, x)), jax.tree.map(lambda a: a[None], x)
        outputs, _ = apply(params, state, block, temporal_gradient=traces)
        _check_taken(traces)
        return tuple(traces.after), outputs

    traced, (shapes, _) = jax.make_jaxpr(first, return_shape=True)(params, state, x)
    _check_all_taken(traced.jaxpr, len(shapes), params)
    return tuple(jnp.zeros(s.shape, s.dtype) for s in shapes)


def _check_taken(traces):
    if not traces.after:
        raise ValueError(
            "ottt needs a network whose layers keep traces of what enters their weights, and this one has "
            "none: write its products as sltt_jax.synapse(product, xs, weights, temporal_gradient="
            "temporal_gradient)"
        )


def _check_all_taken(jaxpr, traces, params):
    """Raises if the outputs of a network, which follow its traces, have a gradient by weights without one.

    Weights of `synapse` and `recurrent` are seen as constants here: what they learn by is not in the program
    before it is differentiated.
    """
    reached = _differentiated_by(jaxpr, [i >= traces for i in range(len(jaxpr.outvars))])
    for (path, leaf), flag in zip(jax.tree_util.tree_leaves_with_path(params), reached, strict=False):
        if flag and jnp.ndim(leaf) > 1 and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise ValueError(
                f"ottt has no trace for what enters the weights {jax.tree_util.keystr(path)}, of shape "
                f"{jnp.shape(leaf)}: write what they do as sltt_jax.synapse(product, xs, weights, "
                "temporal_gradient=temporal_gradient)"
            )


def _differentiated_by(jaxpr, wanted):
    """Flags the inputs of a jaxpr by which those of its outputs that are `wanted` may have a derivative."""
    if isinstance(jaxpr, core.ClosedJaxpr):
        jaxpr = jaxpr.jaxpr
    variables = lambda atoms, flags: {v for v, f in zip(atoms, flags, strict=True) if f and _is_variable(v)}
    reached = variables(jaxpr.outvars, wanted)
    for equation in reversed(jaxpr.eqns):
        flags = [v in reached for v in equation.outvars]
        if not any(flags) or equation.primitive.name == "stop_gradient":
            continue
        inner = list(core.jaxprs_in_params(equation.params))
        # Calls are looked into; of loops and branches every input counts.
        if len(inner) == 1 and equation.primitive.name not in ("scan", "while"):
            flags = _differentiated_by(inner[0], flags)
        else:
            flags = [True] * len(equation.invars)
        reached |= variables(equation.invars, flags)
    return [v in reached for v in jaxpr.invars]


def _is_variable(atom):
    return not isinstance(atom, core.Literal)
