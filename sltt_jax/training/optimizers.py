"""Optimizers of the experiments, from optax."""

import jax
import jax.numpy as jnp
import optax

from sltt_jax.blocks import PyTree
from sltt_jax.time_constants import LOGIT_DECAY

OPTIMIZERS = ("sgd", "adamw")


def cosine_per_epoch(lr: float, *, epochs: int, steps_per_epoch: int) -> optax.Schedule:
    """Builds PyTorch's CosineAnnealingLR to 0, stepped once an epoch: `lr/2 (1 + cos(pi epoch / epochs))`."""

    def schedule(step):
        epoch = jnp.asarray(step) // steps_per_epoch
        return lr / 2 * (1 + jnp.cos(jnp.pi * jnp.minimum(epoch / epochs, 1.0)))

    return schedule


def decayed(params: PyTree) -> PyTree:
    """Says which parameters have weight decay: all but learned time constants, each of which 0 would make 2.

    Returns:
      A pytree of bools like `params`.
    """

    def is_decayed(path, _):
        return not any(str(getattr(key, "key", "")).startswith(LOGIT_DECAY) for key in path)

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def make_optimizer(
    name: str, schedule: optax.ScalarOrSchedule, *, weight_decay: float = 0.0, momentum: float = 0.9
) -> optax.GradientTransformation:
    """Builds SGD as PyTorch has it, or AdamW.

    Args:
      name: "sgd": weight decay is coupled L2 on all `decayed` parameters, added to the gradient before the
        momentum (the paper's recipes); "adamw": decoupled weight decay.
      schedule: learning rate, or learning rate as a function of the step.
      weight_decay: >= 0.
      momentum: of "sgd", 0..1.

    Raises:
      ValueError: an unknown name, or a number outside its range.
    """
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must be >= 0, got {weight_decay}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must be in 0..1, got {momentum}")
    if name == "sgd":
        return optax.chain(optax.add_decayed_weights(weight_decay, decayed), optax.sgd(schedule, momentum))
    if name == "adamw":
        return optax.adamw(schedule, weight_decay=weight_decay, mask=decayed)
    raise ValueError(f"optimizer must be one of {OPTIMIZERS}, got {name!r}")
