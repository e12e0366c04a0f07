"""One training update and one evaluation step, as pure functions to be compiled once."""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from sltt_jax import losses
from sltt_jax.block_rule import check_target, over_steps
from sltt_jax.blocks import Apply, PerStep, PyTree, first_step, run, time_steps
from sltt_jax.data.encoders import Encoder, TargetEncoder
from sltt_jax.rules import Rule, StepLoss
from sltt_jax.training import loss_contract
from sltt_jax.training.answers import MetricsOf, accuracy, tallied, tally_of_sum, values_of_steps
from sltt_jax.training.device_keys import keys_of_device, keys_of_first_device
from sltt_jax.training.loss_scale import LEAST, adjust
from sltt_jax.training.networks import Kept, Start, as_network
from sltt_jax.training.states import TrainState


class Metrics(NamedTuple):
    """Scalars of one update over the whole batch.

    An update whose gradient overflowed float16 is left out, and the norm is 0.

    Attributes:
      loss: mean loss.
      values: means of the metrics by name: "accuracy" by default, the share of right answers where targets
        are class numbers, and nothing where they are something else. With weights, and of `PerStep`, they are
        over the samples and steps whose weight is not 0.
      grad_norm: norm of the gradient.
      answers: how many samples and steps `values` are of, where there are weights or it is `PerStep`; else
        None: all samples.
    """

    loss: jax.Array
    values: dict[str, jax.Array]
    grad_norm: jax.Array
    answers: jax.Array | None = None


class Evaluation(NamedTuple):
    """Sums over the samples of a batch that count.

    Attributes:
      samples: how many count, scalar: those of the mask, without those of weight 0 where a target of all
        steps has weights.
      values: of the metrics by name, after the first t steps, `[T]` each: "accuracy" by default, right
        answers from the sum of the outputs of those steps; of `PerStep` class numbers those from the outputs
        of step t alone. Nothing where the targets are no class numbers.
      loss: of the samples, averaged over time, scalar.
      firing_rates: of the samples, for every layer of spiking cells (keyed by its path) and step, `[T]` each.
        It makes no difference whether a step has a target. Of a network that is a function there are none.
      weight: what `loss` is to be divided by, scalar: of the samples the weights, averaged over time; None
        where there are no weights, and it is `samples`.
      answers: of `PerStep` targets, how many of `samples` have a weight other than 0 at step t, `[T]`, of
        which `values` are; else None.
    """

    samples: jax.Array
    values: dict[str, jax.Array]
    loss: jax.Array
    firing_rates: dict[str, jax.Array]
    weight: jax.Array | None = None
    answers: jax.Array | None = None


def make_update(
    model: nn.Module | Apply,
    rule: Rule,
    step_loss: StepLoss,
    optimizer: optax.GradientTransformation,
    encode: Encoder,
    *,
    encode_target: TargetEncoder = lambda y: y,
    metrics: MetricsOf = accuracy,
    start: Start | None = None,
    kept: Kept | None = None,
    axis_name: str | None = None,
) -> Callable[[TrainState, PyTree], tuple[TrainState, Metrics]]:
    """Builds `update(state, {"x": [B, ...], "y": [B]}) -> (state, Metrics)`.

    With `encode_target=encoders.per_step` there is a target at every step, `{"y": [B, T, ...]}`. With
    weights, `{"y": {"y": ..., "weight": ...}}`, the loss is the mean over the samples and steps that count on
    all devices, for which `losses.normalised` scales any weights; `step_loss` is a `losses.weighted` one.

    With an `axis_name` it is the part of one device under `pmap`: the batch is that device's, and the one
    average over devices, of gradients, running statistics and metrics, comes after the last time step. Each
    device draws its own augmentation and dropout masks, and all the same steps of SLTT-K. Of typed keys
    (`jax.random.key`) in the state of a network each device has its own, with its number folded in, and those
    of the first go on to the next update.

    Args:
      model: a Linen module, or a network that is a function, `apply(params, state, xs, *, temporal_gradient)`
        (see `sltt_jax.blocks`), in training.
      rule: the training rule.
      step_loss: loss of one step, a mean over the samples of a batch: devices average theirs, and an
        evaluation takes that of one sample at a time. What samples or classes weigh is in the target.
      optimizer: of the parameters.
      encode: makes inputs of `x`.
      encode_target: makes the target of `y`.
      metrics: `metrics(outputs, target) -> {name: [B]}`, a number for each sample: of the outputs summed over
        time, and of `PerStep` of one step's outputs and target. The target is without its weights.
      start: of a function, `start(variables, x) -> state`: its state before the first step, whose input `x`
        is `[B, ...]`; () for a network without one.
      kept: of a function, `kept(state) -> variables`: what of the state after the last step goes on to the
        next update, where `start` gets it. By default nothing does, and `variables` stay as they are.
      axis_name: see above.

    Raises:
      ValueError: `start` is missing of a function, or given of a module. When it is called: `start` returns
        None, `metrics` are of another shape than `[B]` or have a name that is taken, the batch is empty, an
        array of the target is not `[B, ...]`, or `step_loss` is no mean over the samples, which made-up
        outputs tell when the update is traced.
    """
    network, step_loss = as_network(model, start, kept), loss_contract.checked(step_loss)

    def update(state: TrainState, batch: PyTree):
        data_key, dropout_key, rule_key = jax.random.split(jax.random.fold_in(state.key, state.step), 3)
        if axis_name is not None:
            device = jax.lax.axis_index(axis_name)
            data_key, dropout_key = (jax.random.fold_in(k, device) for k in (data_key, dropout_key))
        inputs = encode(batch["x"], data_key)
        apply = network.train(dropout_key)
        first = network.start(state.variables, first_step(inputs))
        if axis_name is not None:
            first = keys_of_device(first, axis_name)
        target = _normalised(encode_target(batch["y"]), axis_name)
        if isinstance(target, PerStep):
            apply, first = tallied(apply, metrics, state.params, first, inputs, target)
        scale = 1.0 if state.loss_scale is None else state.loss_scale.scale
        (loss, aux), grads = rule.value_and_grad(apply, lambda o, y: scale * step_loss(o, y))(
            network.cast(state.params), first, inputs, target, rule_key
        )
        if isinstance(target, PerStep):
            last, (_, tally) = aux.state
        else:
            last, tally = aux.state, tally_of_sum(metrics, aux.outputs, target)
        variables = network.kept(last, state.variables)
        if axis_name is not None:
            # A mean of moving averages is the moving average of the means, so this may be done every time.
            grads, variables, loss, tally = _mean((grads, variables, loss, tally), axis_name)
            variables = keys_of_first_device(variables, axis_name)
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
        answers = tally.answers
        if axis_name is not None and answers is not None:
            answers = answers * jax.lax.axis_size(axis_name)
        return new, Metrics(loss, tally.means(), norm, answers)

    return update


def _mean(tree, axis_name):
    """Averages the floating point arrays over devices, in one all-reduce; others are the same on all."""
    leaves, form = jax.tree.flatten(tree)
    floating = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    means = jax.lax.pmean([leaves[i] for i in floating], axis_name)
    for i, mean in zip(floating, means, strict=True):
        leaves[i] = mean
    return jax.tree.unflatten(form, leaves)


def _normalised(target, axis_name):
    """Normalises the weights of a target that has some."""
    inner = target.target if isinstance(target, PerStep) else target
    y, weight = losses.split_weight(inner)
    if weight is None:
        return target
    inner = {"y": y, "weight": losses.normalised(weight, axis_name)}
    return PerStep(inner) if isinstance(target, PerStep) else inner


def make_evaluate(
    model: nn.Module | Apply,
    step_loss: StepLoss,
    encode: Encoder,
    *,
    encode_target: TargetEncoder = lambda y: y,
    metrics: MetricsOf = accuracy,
    start: Start | None = None,
    axis_name: str | None = None,
) -> Callable[[PyTree, PyTree, PyTree], Evaluation]:
    """Builds `evaluate(params, variables, {"x": [B, ...], "y": [B], "mask": [B]}) -> Evaluation`.

    Targets at every step and weights are as for `make_update`, but the weights count as they are. With an
    `axis_name` the batch is that of one device under `pmap`, and the sums are over all of them. Args and
    errors are those of `make_update`; a network that is a function is given as it is in evaluation.
    """
    network, loss_of_each = as_network(model, start, None), loss_contract.of_each(step_loss)

    def evaluate(params: PyTree, variables: PyTree, batch: PyTree) -> Evaluation:
        inputs, target, mask = encode(batch["x"], None), encode_target(batch["y"]), batch["mask"] != 0
        per_step = isinstance(target, PerStep)
        y, weight = losses.split_weight(target.target if per_step else target)
        first = network.start(variables, first_step(inputs))
        (outputs, rates), _ = run(network.evaluate, params, first, inputs)
        check_target(target, jax.eval_shape(first_step, outputs), time_steps(inputs))
        loss = over_steps(loss_of_each, outputs, target)  # [T, B]
        values = values_of_steps(metrics, outputs, PerStep(y) if per_step else y)
        asked = mask  # [B], or [T, B]
        if weight is not None:
            asked = jnp.broadcast_to(mask, weight.shape) & (weight != 0)
            loss = jnp.where(asked, loss, 0)
        mask = mask if per_step else asked
        # Left out, and not multiplied by 0: what is made of padding may be NaN.
        counted = lambda values, mask=mask: jnp.where(mask, values, 0).sum(-1, dtype=jnp.float32)
        by_path = jax.tree_util.tree_leaves_with_path(rates)
        sums = Evaluation(
            samples=counted(1),
            values={name: counted(value, asked) for name, value in values.items()},
            loss=counted(loss.mean(0)),
            firing_rates={"/".join(k.key for k in path[:-1]): counted(rate) for path, rate in by_path},
            weight=None if weight is None else counted(jnp.broadcast_to(weight, loss.shape).mean(0)),
            answers=jnp.broadcast_to(counted(1, asked), len(loss)) if per_step else None,
        )
        return sums if axis_name is None else jax.lax.psum(sums, axis_name)

    return evaluate
