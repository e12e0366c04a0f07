"""Instantaneous losses `step_loss(outputs, target) -> scalar` of one step; a rule averages them over T.

A weight `[B]` of the samples scales their losses, which are averaged over all B then:

    loss = 1/B sum_b weight[b] loss[b]

so that weights of 1 change nothing. What has a weight of 0 is left out: there labels, values and outputs may
be undefined. It is not divided by the sum of the weights, because one step does not know those of the others:
`normalised` scales the weights of all steps before the rule.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from sltt_jax.blocks import PyTree, at_least_float32
from sltt_jax.rules import StepLoss

MSE_TARGETS = ("ones", "one_hot")


def _check(logits, labels, weight):
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"expected logits [B, classes] and labels [B], got shapes {logits.shape} and {labels.shape}"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integers (class numbers), got {labels.dtype}")
    labels = labels.astype(jnp.int32)  # 8 bits could not name the classes that they are compared with
    return _counted(logits, labels, weight)


def _counted(outputs, target, weight):
    """Puts zeros in the place of what has a weight of 0.

    The loss times 0 is not enough: of NaN it is NaN, and so is the gradient even where the loss is left out.
    """
    if weight is None:
        return outputs, target
    if weight.shape != outputs.shape[:1]:
        raise ValueError(f"expected weights [B] of B={outputs.shape[0]} samples, got shape {weight.shape}")
    keep = lambda a: jnp.where(_of_samples(weight != 0, a), a, 0)
    return keep(outputs), keep(target)


def _mean(values, weight):
    return values.mean() if weight is None else (_of_samples(weight, values) * values).mean()


def _of_samples(weight, values):
    """Gives a weight `[B]` the axes of `values`, `[B, ...]`."""
    return jnp.expand_dims(weight, range(1, values.ndim))


def cross_entropy(logits: jax.Array, labels: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """Mean cross entropy over the batch.

    Args:
      logits: `[B, classes]`.
      labels: class numbers, `[B]`, integers. A label outside 0..classes-1 makes the loss NaN.
      weight: of the samples, `[B]`, see the module's docstring; 1 by default.

    Raises:
      ValueError: wrong ranks, or labels that are not integers.
    """
    logits, labels = _check(logits, labels, weight)
    classes = logits.shape[-1]
    # optax answers a label beyond the last class with NaN, but counts a negative one from the end.
    labels = jnp.where(labels < 0, classes, labels)
    return _mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels), weight)


def mean_squared_error(
    logits: jax.Array, labels: jax.Array, weight: jax.Array | None = None, *, target: str = "ones"
) -> jax.Array:
    """Mean over batch and classes of `(logits - target)^2`.

    Args:
      logits: `[B, classes]`.
      labels: class numbers, `[B]`, integers; used by `target="one_hot"` only.
      weight: of the samples, `[B]`, see the module's docstring; 1 by default.
      target: "ones" (a regulariser that pulls every logit to 1; the paper's code on CIFAR and DVS-Gesture) or
        "one_hot" (the label; the paper's code on DVS-CIFAR10).

    Raises:
      ValueError: wrong ranks, labels that are not integers, or an unknown target.
    """
    logits, labels = _check(logits, labels, weight)
    if target not in MSE_TARGETS:
        raise ValueError(f"target must be one of {MSE_TARGETS}, got {target!r}")
    wanted = 1.0 if target == "ones" else jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return _mean((logits - wanted) ** 2, weight)


def membrane_mse(membrane: jax.Array, values: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """Mean over batch and neurons of `(membrane - values)^2`: regression, of a readout that does not spike.

    Args:
      membrane: outputs of the network, `[B, ...]`.
      values: what they should be, `[B, ...]`, the same shape.
      weight: of the samples, `[B]`, see the module's docstring; 1 by default.

    Raises:
      ValueError: the shapes differ.
    """
    if membrane.shape != values.shape:
        raise ValueError(
            f"expected membranes and values of one shape, got {membrane.shape} and {values.shape}"
        )
    membrane, values = _counted(membrane, values, weight)
    return _mean((membrane - values) ** 2, weight)


def classification(*, mse_weight: float = 0.0, mse_target: str = "ones") -> StepLoss:
    """Builds the paper's loss of one step, `(1 - mse_weight) CE + mse_weight MSE`.

    Args:
      mse_weight: 0..1; 0.05 on CIFAR and the DVS sets, 0 on ImageNet.
      mse_target: "ones" or "one_hot", see `mean_squared_error`.

    Returns:
      `step_loss(logits [B, classes], labels [B]) -> scalar`, which is `weighted`.

    Raises:
      ValueError: `mse_weight` is outside its range, or an unknown target.
    """
    if not 0 <= mse_weight <= 1:
        raise ValueError(f"mse_weight must be in 0..1, got {mse_weight}")
    if mse_target not in MSE_TARGETS:
        raise ValueError(f"mse_target must be one of {MSE_TARGETS}, got {mse_target!r}")

    def step_loss(logits, labels, weight):
        loss = cross_entropy(logits, labels, weight)
        if not mse_weight:
            return loss
        mse = mean_squared_error(logits, labels, weight, target=mse_target)
        return (1 - mse_weight) * loss + mse_weight * mse

    return weighted(step_loss)


def weighted(loss: Callable[..., jax.Array]) -> StepLoss:
    """Builds the loss of one step, of targets with weights and of those without.

    Args:
      loss: `loss(outputs [B, ...], target, weight [B] or None) -> scalar`, as `cross_entropy`.

    Returns:
      `step_loss(outputs, target) -> scalar`, where the target may be `{"y": target, "weight": weight}`.
    """
    return lambda outputs, target: loss(outputs, *split_weight(target))


def split_weight(target: PyTree) -> tuple[PyTree, PyTree]:
    """Takes `{"y": target, "weight": weight}` apart; the weight of any other target is None."""
    if isinstance(target, dict) and set(target) == {"y", "weight"}:
        return target["y"], target["weight"]
    return target, None


def normalised(weight: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Scales weights so that the mean of the weighted losses is the mean over all that counts.

        weight[t, b] T B / sum of weight

    A rule averages over the T steps and a loss over the B samples; what comes out is then

        sum over t, b of weight[t, b] loss[t, b] / sum of weight

    With all weights 0 there is nothing to learn, and all of them stay 0.

    Args:
      weight: of every step and sample, `[T, B]`, or `[B]` for all steps; >= 0.
      axis_name: of the devices, where the weights are those of one of them. The mean over the devices of
        their losses, and of their gradients, is then that over all of what counts, however it is shared out.
    """
    weight = at_least_float32(weight)
    total = weight.sum()
    if axis_name is not None:
        # The mean over D devices of 1/(T B) divides by D T B in all, of which `weight.size` here is T B.
        total = jax.lax.pmean(total, axis_name)
    return weight * (weight.size / jnp.where(total > 0, total, 1))


def length_weights(lengths: jax.Array, T: int) -> jax.Array:
    """Weighs sequences of different lengths: 1 at the steps of each and 0 after its end, `[T, B]` float32.

    Args:
      lengths: steps of each sequence, `[B]`, 0..T.
      T: time steps that all are filled up to.
    """
    return (jnp.arange(T)[:, None] < lengths[None]).astype(jnp.float32)
