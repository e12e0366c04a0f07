"""Updates, evaluation and the training loop."""

from sltt_jax.training.encoders import Augmentation, Encoder, flat, frames, images
from sltt_jax.training.loop import CHECKPOINTS, METRICS_FILE, evaluate_all, read_metrics, train_epochs
from sltt_jax.training.optimizers import OPTIMIZERS, cosine_per_epoch, make_optimizer
from sltt_jax.training.steps import (
    Evaluation,
    Metrics,
    TrainState,
    init_state,
    make_evaluate,
    make_update,
)

__all__ = [
    "CHECKPOINTS",
    "METRICS_FILE",
    "OPTIMIZERS",
    "Augmentation",
    "Encoder",
    "Evaluation",
    "Metrics",
    "TrainState",
    "cosine_per_epoch",
    "evaluate_all",
    "flat",
    "frames",
    "images",
    "init_state",
    "make_evaluate",
    "make_optimizer",
    "make_update",
    "read_metrics",
    "train_epochs",
]
