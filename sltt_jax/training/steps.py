"""One training update and one evaluation step, as pure functions to be compiled once."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from sltt_jax import functional, losses
from sltt_jax.block_rule import check_target, over_steps
from sltt_jax.blocks import PerStep, PyTree, at_least_float32, first_step, run, time_steps
from sltt_jax.data.encoders import Encoder, TargetEncoder
from sltt_jax.layers import FIRING_RATE
from sltt_jax.rules import Rule, StepLoss
from sltt_jax.training.loss_scale import LEAST, LossScale, adjust, initial_loss_scale


class TrainState(NamedTuple):
    """State that training carries from update to update.

    Attributes:
      step: updates done, int32 scalar.
      params: parameters.
      variables: the network's other collections (batch statistics); membranes start anew at every update.
      opt_state: of the optimizer.
      key: with `step` it draws augmentation, dropout masks and the steps of SLTT-K; it never changes.
      loss_scale: of float16; None otherwise.
    """

    step: jax.Array
    params: PyTree
    variables: PyTree
    opt_state: optax.OptState
    key: jax.Array
    loss_scale: LossScale | None = None


class Metrics(NamedTuple):
    """Scalars of one update over the whole batch: mean loss, share of right answers, norm of the gradient.

    An update whose gradient overflowed float16 is left out, and the norm is 0. The accuracy is None where the
    targets are no class numbers `[B]`, so also where they are `PerStep` or have weights.
    """

    loss: jax.Array
    accuracy: jax.Array | None
    grad_norm: jax.Array


class Evaluation(NamedTuple):
    """Sums over the samples of a batch that count.

    Attributes:
      samples: how many count, scalar: those of the mask, without those of weight 0 where a target of all
        steps has weights.
      correct: right answers from the sum of the outputs of the first t steps, `[T]`; of `PerStep` class
        numbers those from the outputs of step t alone. None where the targets are no class numbers.
      loss: of the samples, averaged over time, scalar.
      firing_rates: of the samples, for every layer of spiking cells (keyed by its path) and step, `[T]` each.
        It makes no difference whether a step has a target.
      weight: what `loss` is to be divided by, scalar: of the samples the weights, averaged over time; None
        where there are no weights, and it is `samples`.
      answers: of `PerStep` targets, how many of `samples` have a weight other than 0 at step t, `[T]`, of
        which `correct` were right; else None.
    """

    samples: jax.Array
    correct: jax.Array | None
    loss: jax.Array
    firing_rates: dict[str, jax.Array]
    weight: jax.Array | None = None
    answers: jax.Array | None = None


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    encode: Encoder,
    key: jax.Array,
    x: jax.Array,
    *,
    scale_loss: bool = False,
) -> TrainState:
    """Draws a fresh training state.

    Args:
      model: the network.
      optimizer: of the updates to come.
      encode: makes inputs of a batch.
      key: draws the parameters, and becomes the key of the run.
      x: inputs of a batch, of which only shape and dtype matter.
      scale_loss: for networks that compute in float16.
    """
    init_key, run_key = jax.random.split(key)
    params, variables = functional.init(model, init_key, first_step(encode(x, None)))
    kept = {name: value for name, value in variables.items() if name in functional.kept(model)}
    return TrainState(
        jnp.zeros((), jnp.int32), params, kept, optimizer.init(params), run_key,
        initial_loss_scale() if scale_loss else None,
    )  # fmt: skip


def make_update(
    model: nn.Module,
    rule: Rule,
    step_loss: StepLoss,
    optimizer: optax.GradientTransformation,
    encode: Encoder,
    *,
    encode_target: TargetEncoder = lambda y: y,
    axis_name: str | None = None,
) -> Callable[[TrainState, PyTree], tuple[TrainState, Metrics]]:
    """Builds `update(state, {"x": [B, ...], "y": [B]}) -> (state, Metrics)`.

    With `encode_target=encoders.per_step` there is a target at every step, `{"y": [B, T, ...]}`. With
    weights, `{"y": {"y": ..., "weight": ...}}`, the loss is the mean over the samples and steps that count on
    all devices, for which `losses.normalised` scales any weights; `step_loss` is a `losses.weighted` one.

    With an `axis_name` it is the part of one device under `pmap`: the batch is that device's, and the one
    average over devices, of gradients, running statistics and metrics, comes after the last time step. Each
    device draws its own augmentation and dropout masks, and all the same steps of SLTT-K.
    """

    def update(state: TrainState, batch: PyTree):
        data_key, dropout_key, rule_key = jax.random.split(jax.random.fold_in(state.key, state.step), 3)
        if axis_name is not None:
            device = jax.lax.axis_index(axis_name)
            data_key, dropout_key = (jax.random.fold_in(k, device) for k in (data_key, dropout_key))
        inputs = encode(batch["x"], data_key)
        apply = functional.applier(model, train=True, key=dropout_key)
        start = functional.at_rest(model, state.variables, first_step(inputs))
        target = _normalised(encode_target(batch["y"]), axis_name)
        scale = 1.0 if state.loss_scale is None else state.loss_scale.scale
        (loss, aux), grads = rule.value_and_grad(apply, lambda o, y: scale * step_loss(o, y))(
            functional.cast_kernels(model, state.params), start, inputs, target, rule_key
        )
        variables = {name: aux.state[name] for name in state.variables}
        accuracy = _of_known(_right(aux.outputs, target, steps=False), jnp.mean)
        if axis_name is not None:
            # A mean of moving averages is the moving average of the means, so this may be done every time.
            grads, variables, loss, accuracy = jax.lax.pmean((grads, variables, loss, accuracy), axis_name)
        if state.loss_scale is not None:
            loss, grads = jax.tree.map(lambda g: g / scale, (loss, grads))
        norm = optax.tree.norm(grads)
        changes, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, changes)
        loss_scale = state.loss_scale
        if loss_scale is not None:
            finite = jnp.isfinite(norm)
            keep = lambda new, old: jnp.where(finite, new, old)
            before = state.params, state.variables, state.opt_state
            params, variables, opt_state = jax.tree.map(keep, (params, variables, opt_state), before)
            # Of a loss as it is nothing overflows: there a gradient that is not finite ends the run.
            norm = jnp.where(finite | (loss_scale.scale <= LEAST), norm, 0)
            loss_scale = adjust(loss_scale, finite)
        new = TrainState(state.step + 1, params, variables, opt_state, state.key, loss_scale)
        return new, Metrics(loss, accuracy, norm)

    return update


def _normalised(target, axis_name):
    """Normalises the weights of a target that has some."""
    inner = target.target if isinstance(target, PerStep) else target
    y, weight = losses.split_weight(inner)
    if weight is None:
        return target
    inner = {"y": y, "weight": losses.normalised(weight, axis_name)}
    return PerStep(inner) if isinstance(target, PerStep) else inner


def _right(outputs, y, *, steps):
    """Compares answers with class numbers `[B]`; None where `y` are something else.

    Args:
      outputs: the sum over time, `[B, classes]`; with `steps` those of all steps, `[T, B, classes]`. Without
        it also those of all steps and `y` `[T, B]`.

    Raises:
      ValueError: `y` are class numbers `[B, 1]`.
    """
    arrays = all(isinstance(a, (jax.Array, np.ndarray)) for a in (outputs, y))
    if not arrays or not jnp.issubdtype(y.dtype, jnp.integer):
        return None
    outputs = jnp.cumsum(at_least_float32(outputs), axis=0) if steps else outputs
    *batch, classes = outputs.shape[steps:] or (1,)
    if y.shape == (*batch, 1) and classes > 1:
        raise ValueError(f"labels must be class numbers [B], got shape {y.shape}")
    if y.shape != tuple(batch):
        return None
    answers = outputs.argmax(-1)
    return answers == jax.lax.broadcast_to_rank(y, answers.ndim)


def _of_known(values, f):
    return None if values is None else f(values)


def make_evaluate(
    model: nn.Module,
    step_loss: StepLoss,
    encode: Encoder,
    *,
    encode_target: TargetEncoder = lambda y: y,
    axis_name: str | None = None,
) -> Callable[[PyTree, PyTree, PyTree], Evaluation]:
    """Builds `evaluate(params, variables, {"x": [B, ...], "y": [B], "mask": [B]}) -> Evaluation`.

    Targets at every step and weights are as for `make_update`, but the weights count as they are. With an
    `axis_name` the batch is that of one device under `pmap`, and the sums are over all of them.
    """
    apply = functional.applier(model, train=False, record=(FIRING_RATE,))
    loss_of_one = lambda *o_and_y: step_loss(*jax.tree.map(lambda a: a[None], o_and_y))

    def evaluate(params: PyTree, variables: PyTree, batch: PyTree) -> Evaluation:
        inputs, target, mask = encode(batch["x"], None), encode_target(batch["y"]), batch["mask"] != 0
        per_step = isinstance(target, PerStep)
        y, weight = losses.split_weight(target.target if per_step else target)
        start = functional.at_rest(model, variables, first_step(inputs))
        (outputs, recorded), _ = run(apply, params, start, inputs)
        check_target(target, jax.eval_shape(first_step, outputs), time_steps(inputs))
        loss = over_steps(jax.vmap(loss_of_one), outputs, target)  # [T, B]
        right = _right(outputs, y, steps=not per_step)
        rates = jax.tree_util.tree_leaves_with_path(recorded[FIRING_RATE])
        asked = mask  # [B], or [T, B]
        if weight is not None:
            asked = jnp.broadcast_to(mask, weight.shape) & (weight != 0)
            loss = jnp.where(asked, loss, 0)
        mask = mask if per_step else asked
        # Left out, and not multiplied by 0: what is made of padding may be NaN.
        counted = lambda values, mask=mask: jnp.where(mask, values, 0).sum(-1, dtype=jnp.float32)
        sums = Evaluation(
            samples=counted(1),
            correct=_of_known(right, lambda right: counted(right, asked)),
            loss=counted(loss.mean(0)),
            firing_rates={"/".join(k.key for k in path[:-1]): counted(rate) for path, rate in rates},
            weight=_of_known(weight, lambda w: counted(jnp.broadcast_to(w, loss.shape).mean(0))),
            answers=jnp.broadcast_to(counted(1, asked), len(loss)) if per_step else None,
        )
        return sums if axis_name is None else jax.lax.psum(sums, axis_name)

    return evaluate
