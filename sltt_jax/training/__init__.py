"""Updates, evaluation and the training loop."""

from sltt_jax.training.answers import accuracy
from sltt_jax.training.checkpoint_files import sha256
from sltt_jax.training.checkpoints import CHECKPOINTS, DAMAGED, Checkpoints, load_parts
from sltt_jax.training.loop import evaluate_all, train_epochs
from sltt_jax.training.loss_scale import LossScale
from sltt_jax.training.metrics import METRICS_FILE, read_metrics, write_text
from sltt_jax.training.optimizers import OPTIMIZERS, cosine_per_epoch, make_optimizer
from sltt_jax.training.parallel import (
    AXIS,
    check_divides,
    check_replicated,
    local_devices,
    parallel,
    replicate,
    samples_of,
    split,
)
from sltt_jax.training.processes import differing, join, leave, on_first, same_everywhere, together
from sltt_jax.training.states import TrainState, init_state, state_of
from sltt_jax.training.steps import Evaluation, Metrics, make_evaluate, make_update
from sltt_jax.training.stopping import Stopped, StopRequests

__all__ = [
    "AXIS",
    "CHECKPOINTS",
    "DAMAGED",
    "METRICS_FILE",
    "OPTIMIZERS",
    "Checkpoints",
    "Evaluation",
    "LossScale",
    "Metrics",
    "StopRequests",
    "Stopped",
    "TrainState",
    "accuracy",
    "check_divides",
    "check_replicated",
    "cosine_per_epoch",
    "differing",
    "evaluate_all",
    "init_state",
    "join",
    "leave",
    "load_parts",
    "local_devices",
    "make_evaluate",
    "make_optimizer",
    "make_update",
    "on_first",
    "parallel",
    "read_metrics",
    "replicate",
    "same_everywhere",
    "samples_of",
    "sha256",
    "split",
    "state_of",
    "together",
    "train_epochs",
    "write_text",
]
