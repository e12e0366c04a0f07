"""Metrics of an update and of an evaluation: numbers of every sample, of which the mean is reported.

A function of metrics is `metrics(outputs, target) -> {name: [B]}`, a number (or bool) for each sample. Of a
plain target the outputs are summed over time, `[B, ...]`; of `PerStep` both are those of one step. The target
comes without its weights: what has a weight of 0 is left out of the mean, and all else counts alike. The
names of numbers that updates and evaluations tell anyway are taken.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sltt_jax import losses
from sltt_jax.block_rule import check_target, first_state
from sltt_jax.blocks import Apply, PerStep, PyTree, at_least_float32, time_steps

TAKEN = "loss", "grad_norm", "firing_rates"

MetricsOf = Callable[[PyTree, PyTree], dict[str, jax.Array]]


def accuracy(outputs: PyTree, y: PyTree) -> dict[str, jax.Array]:
    """Tells which answers, the classes of the largest outputs, are right.

    Args:
      outputs: `[B, classes]`.
      y: class numbers, `[B]`, integers.

    Returns:
      `{"accuracy": [B]}`, bool; nothing where the target is something else than class numbers.

    Raises:
      ValueError: `y` are class numbers `[B, 1]`.
    """
    arrays = all(isinstance(a, (jax.Array, np.ndarray)) for a in (outputs, y))
    if not arrays or not jnp.issubdtype(y.dtype, jnp.integer):
        return {}
    *batch, classes = outputs.shape or (1,)
    if y.shape == (*batch, 1) and classes > 1:
        raise ValueError(f"labels must be class numbers [B], got shape {y.shape}")
    return {"accuracy": outputs.argmax(-1) == y} if y.shape == tuple(batch) else {}


class Tally(NamedTuple):
    """Sums over the samples and steps that count.

    Attributes:
      sums: of the metrics, by name, scalars.
      answers: samples, or samples at steps, scalar; None where all count, and `sums` are means.
    """

    sums: dict[str, jax.Array]
    answers: jax.Array | None

    def means(self) -> dict[str, jax.Array]:
        """Divides by the number of answers; where there is none the means are 0."""
        if self.answers is None:
            return self.sums
        # Of several devices it is an average, and may be below 1.
        number = jnp.where(self.answers > 0, self.answers, 1)
        return {name: jnp.where(self.answers > 0, value / number, 0) for name, value in self.sums.items()}


def tally_of_sum(metrics: MetricsOf, outputs: PyTree, target: PyTree) -> Tally:
    """Applies metrics to the sum of the outputs over time, of a plain target, with weights `[B]` or none."""
    y, weight = losses.split_weight(target)
    values = _checked(metrics(outputs, y), jax.tree.leaves(outputs)[0].shape[:1])
    if weight is None:
        return Tally({name: value.mean() for name, value in values.items()}, None)
    return _tally(values, weight)


def tallied(
    apply: Apply, metrics: MetricsOf, params: PyTree, start: PyTree, inputs: PyTree, target: PerStep
) -> tuple[Apply, PyTree]:
    """Makes a network apply the metrics to the outputs of every step, whose memory would else grow with T.

    Returns:
      The network and its state at the start, `(start, (step, tally))`: at the end it holds the `Tally` of all
      steps, which has no part in the gradient.
    """
    T = time_steps(inputs)
    _, outputs = first_state(apply, params, start, inputs)  # zeros like those of one step
    check_target(target, outputs, T)
    y, weight = losses.split_weight(target.target)
    weight = jnp.ones((T, jax.tree.leaves(outputs)[0].shape[0])) if weight is None else weight

    def of_steps(outputs, y, weight):
        return _tally(_checked(jax.vmap(metrics)(outputs, y), weight.shape), weight)

    def counting(params, state, xs, *, temporal_gradient):
        state, (step, tally) = state
        outputs, state = apply(params, state, xs, temporal_gradient=temporal_gradient)
        steps = len(jax.tree.leaves(outputs)[0])
        here = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, step, steps), (y, weight))
        more = of_steps(jax.lax.stop_gradient(outputs), *here)
        return outputs, (state, (step + steps, jax.tree.map(jnp.add, tally, more)))

    first = jax.tree.map(lambda a: a[:1], (y, weight))
    form = jax.eval_shape(of_steps, jax.tree.map(lambda o: o[None], outputs), *first)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), form)
    return counting, (start, (jnp.zeros((), jnp.int32), zeros))


def values_of_steps(metrics: MetricsOf, outputs: PyTree, target: PyTree) -> dict[str, jax.Array]:
    """Applies metrics at every step, for evaluation.

    Args:
      metrics: see the module's docstring.
      outputs: of all steps, `[T, B, ...]`.
      target: without weights: plain, when they are applied to the sum of the outputs of the first t steps, or
        `PerStep`.

    Returns:
      `{name: [T, B]}`.
    """
    if isinstance(target, PerStep):
        values = jax.vmap(metrics)(outputs, target.target)
    else:
        sums = jax.tree.map(lambda o: jnp.cumsum(at_least_float32(o), axis=0), outputs)
        values = jax.vmap(lambda o: metrics(o, target))(sums)
    return _checked(values, jax.tree.leaves(outputs)[0].shape[:2])


def _checked(values, shape):
    for name, value in values.items():
        if name in TAKEN or name.removesuffix("_per_step") in values.keys() - {name}:
            raise ValueError(f"a metric cannot be named {name!r}, which is the name of another number")
        if value.shape != shape:
            raise ValueError(
                f"metrics must return a number for each sample [B], but {name} has the shape "
                f"{value.shape[len(shape) - 1 :]} of B={shape[-1]} samples"
            )
    return values


def _tally(values, weight):
    """Sums values `[..., B]` where their weight, of the same shape, is not 0."""
    counts = weight != 0
    # Left out, and not multiplied by 0: of what does not count the values may be NaN.
    sums = {name: jnp.where(counts, v, 0).sum(dtype=jnp.float32) for name, v in values.items()}
    return Tally(sums, counts.sum(dtype=jnp.float32))
