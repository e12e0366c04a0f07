"""Instantaneous losses `step_loss(logits, labels) -> scalar` of one step; a rule averages them over T."""

import jax
import jax.numpy as jnp
import optax

from sltt_jax.rules import StepLoss

MSE_TARGETS = ("ones", "one_hot")


def _check(logits, labels):
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"expected logits [B, classes] and labels [B], got shapes {logits.shape} and {labels.shape}"
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integers (class numbers), got {labels.dtype}")
    return labels.astype(jnp.int32)  # 8 bits could not name the classes that they are compared with


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross entropy over the batch.

    Args:
      logits: `[B, classes]`.
      labels: class numbers, `[B]`, integers. A label outside 0..classes-1 makes the loss NaN.

    Raises:
      ValueError: wrong ranks, or labels that are not integers.
    """
    labels = _check(logits, labels)
    classes = logits.shape[-1]
    # optax answers a label beyond the last class with NaN, but counts a negative one from the end.
    labels = jnp.where(labels < 0, classes, labels)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def mean_squared_error(logits: jax.Array, labels: jax.Array, *, target: str = "ones") -> jax.Array:
    """Mean over batch and classes of `(logits - target)^2`.

    Args:
      logits: `[B, classes]`.
      labels: class numbers, `[B]`, integers; used by `target="one_hot"` only.
      target: "ones" (a regulariser that pulls every logit to 1; the paper's code on CIFAR and DVS-Gesture) or
        "one_hot" (the label; the paper's code on DVS-CIFAR10).

    Raises:
      ValueError: wrong ranks, labels that are not integers, or an unknown target.
    """
    labels = _check(logits, labels)
    if target not in MSE_TARGETS:
        raise ValueError(f"target must be one of {MSE_TARGETS}, got {target!r}")
    wanted = 1.0 if target == "ones" else jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return jnp.mean((logits - wanted) ** 2)


def classification(*, mse_weight: float = 0.0, mse_target: str = "ones") -> StepLoss:
    """Builds the paper's loss of one step, `(1 - mse_weight) CE + mse_weight MSE`.

    Args:
      mse_weight: 0..1; 0.05 on CIFAR and the DVS sets, 0 on ImageNet.
      mse_target: "ones" or "one_hot", see `mean_squared_error`.

    Returns:
      `step_loss(logits [B, classes], labels [B]) -> scalar`.

    Raises:
      ValueError: `mse_weight` is outside its range, or an unknown target.
    """
    if not 0 <= mse_weight <= 1:
        raise ValueError(f"mse_weight must be in 0..1, got {mse_weight}")
    if mse_target not in MSE_TARGETS:
        raise ValueError(f"mse_target must be one of {MSE_TARGETS}, got {mse_target!r}")

    def step_loss(logits, labels):
        loss = cross_entropy(logits, labels)
        if not mse_weight:
            return loss
        mse = mean_squared_error(logits, labels, target=mse_target)
        return (1 - mse_weight) * loss + mse_weight * mse

    return step_loss
