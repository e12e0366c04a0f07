"""One run: its settings, and all that it is made of."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from common import identity
from common.command import check_numbers
from common.configs import Config, make_model
from common.opened import OpenData, open_data
from common.presets import PRESETS, reduced
from common.rule_flags import AUTO

from sltt_jax import functional, losses, rules, training
from sltt_jax.analysis import auto_chunk
from sltt_jax.blocks import PyTree, first_step
from sltt_jax.data import Prefetch


@dataclasses.dataclass(frozen=True)
class Run(Config):
    """A configuration, and where and how it is run.

    Attributes:
      reduced: the recipe made small enough for two cores and a few minutes.
      made: train on made-up data of the same form.
      init_from: start from the parameters and batch statistics of another run: its workdir, or one of its
        checkpoints.
      data_dir: directory of the data sets.
      download: fetch the data set if it is not there and can be fetched.
      workdir: directory of all that the run writes. A run of the same settings that is in it already is
        resumed.
      resume: insist on resuming a run.
      overwrite: start anew in a workdir that holds a run.
      devices: of this process that are used; all by default.
      save_every: updates between two checkpoints within an epoch; by default there is one at its end.
      keep: how many of the last checkpoints are kept.
      tensorboard: write event files for TensorBoard as well.
      gigabytes: of memory that the temporaries may take where chunk is "auto"; by default 4 on a CPU, and
        four fifths of the device's own elsewhere, or for bptt what it takes at the least.
    """

    reduced: bool = False
    made: bool = False
    init_from: Path | None = None
    data_dir: Path = Path("data")
    download: bool = False
    workdir: Path = Path("runs/default")
    resume: bool = False
    overwrite: bool = False
    devices: int | None = None
    save_every: int | None = None
    keep: int = 2
    tensorboard: bool = False
    gigabytes: float | None = None

    def __post_init__(self, *flags):
        super().__post_init__(*flags)
        check_numbers(self, "devices", "save_every", "keep")
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite exclude each other")

    @classmethod
    def of(cls, preset: str, **changes: Any) -> Self:
        """Makes the run of a preset, with other settings where `changes` names them."""
        return cls(**{**vars(PRESETS[preset]()), **changes})


AnyRun = TypeVar("AnyRun", bound=Run)


class Learned(NamedTuple):
    """Parameters and batch statistics of a network: what it has learnt."""

    params: PyTree
    variables: PyTree


class Experiment(NamedTuple):
    """A run whose settings were found good, with its data, network, rule and loss at hand."""

    run: Run
    data: OpenData
    model: nn.Module
    rule: rules.Rule
    step_loss: rules.StepLoss
    optimizer: optax.GradientTransformation
    devices: Sequence[Any]

    @property
    def sharded(self) -> bool:
        """True with more than one device."""
        return len(self.devices) * jax.process_count() > 1

    def initial_state(self, key: jax.Array) -> training.TrainState:
        """Draws the state before the first update."""
        x = jnp.asarray(self.data.batch["x"])
        init = partial(training.init_state, scale_loss=self.run.precision == "float16")
        return init(self.model, self.optimizer, self.data.encode, key, x)

    def load(self, folder: Path, *, best: bool = False) -> Learned:
        """Reads what a run has learnt: at its last checkpoint, its best one, or the one that `folder` is.

        Raises:
          FileNotFoundError, ValueError: as `training.load_parts`.
        """
        state = jax.eval_shape(self.initial_state, jax.random.key(0))
        like = {"params": state.params, "variables": state.variables}
        return Learned(**training.load_parts(folder, like, best=best))

    def update(self, axis_name: str | None = None) -> Callable:
        """Makes the update, to be compiled; with `axis_name` its part on one device."""
        return training.make_update(
            self.model_on(axis_name), self.rule, self.step_loss, self.optimizer, self.data.encode,
            encode_target=self.data.encode_target, axis_name=axis_name,
        )  # fmt: skip

    def evaluate(self) -> Callable:
        """Makes the evaluation of a batch, compiled when it is called; its batches are made by `put`."""
        make = partial(
            training.make_evaluate, self.model, self.step_loss, self.data.encode,
            encode_target=self.data.encode_target,
        )  # fmt: skip
        if not self.sharded:
            return jax.jit(make())
        return training.parallel(make(axis_name=training.AXIS), self.devices, arguments=2)

    def put(self, batch: Any) -> Any:
        """Puts a batch of this process on its devices."""
        return training.split(batch, self.devices) if self.sharded else jax.device_put(batch, self.devices[0])

    def model_on(self, axis_name: str | None) -> nn.Module:
        """Builds the network, with its batch statistics over `axis_name` where the settings say so."""
        return make_model(self.run, self.data.classes, axis_name=axis_name)


def build(run: Run) -> Experiment:
    """Makes everything that a run is made of.

    Raises:
      ValueError: a setting that cannot be, or data that are not what the run in its workdir began with.
      OSError: the data cannot be read.
    """
    if run.reduced:
        run = reduced(run)
    devices = training.local_devices(run.devices)
    training.check_divides(run.batch_size, len(devices) * jax.process_count())
    step_loss = losses.classification(mse_weight=run.mse_weight, mse_target=run.mse_target)
    data = open_data(run, run.data_dir, made=run.made, download=run.download)
    if not run.overwrite:
        identity.check(run.workdir, run.data, data.identity)
    model = make_model(run, data.classes)
    if run.rule in AUTO:
        rule = AUTO[run.rule]
        chunk = _chosen_chunk(run, rule, data, model, step_loss, len(devices))
        run = dataclasses.replace(run, rule=str(dataclasses.replace(rule, chunk=chunk)), chunk=chunk)
    if run.epochs * data.train.steps_per_epoch >= 2**31:  # updates are counted in int32
        raise ValueError(f"epochs must be < {2**31 // data.train.steps_per_epoch} here, got {run.epochs}")
    schedule = training.cosine_per_epoch(
        run.lr, epochs=run.epochs, steps_per_epoch=data.train.steps_per_epoch
    )
    optimizer = training.make_optimizer(
        run.optimizer, schedule, weight_decay=run.weight_decay, momentum=run.momentum
    )
    return Experiment(run, data, model, rules.parse_rule(run.rule), step_loss, optimizer, devices)


def _chosen_chunk(run, rule, data, model, step_loss, devices):
    """Finds a chunk for the part of a batch that is on one device."""
    parts = devices * jax.process_count()
    of_part = lambda a: jax.ShapeDtypeStruct((a.shape[0] // parts, *a.shape[1:]), a.dtype)
    batch, key = jax.tree.map(of_part, data.batch), jax.random.key(run.seed)
    inputs = jax.eval_shape(lambda x: data.encode(x, None), batch["x"])
    target = jax.eval_shape(data.encode_target, batch["y"])
    params, state = jax.eval_shape(lambda xs: functional.init(model, key, first_step(xs)), inputs)
    apply = functional.applier(model, train=True, key=key)
    return auto_chunk(apply, step_loss, params, state, inputs, target, gigabytes=run.gigabytes, rule=rule)


def presets(prefix: str = "", kind: type[AnyRun] = Run) -> dict[str, tuple[str, AnyRun]]:
    """The presets as tyro takes them: name, text and such a run, its workdir `runs/<prefix><name>`."""
    return {
        name: (inspect.getdoc(preset) or name, kind.of(name, workdir=Path("runs") / (prefix + name)))
        for name, preset in PRESETS.items()
    }


def training_batches(experiment: Experiment) -> Prefetch:
    """Fetches the training batches of a run ahead, onto its devices."""
    return Prefetch(experiment.data.train, put=experiment.put)


def held_out_batches(experiment: Experiment) -> dict[str, Callable]:
    """The batches of "test" and "validation" on the devices of a run."""
    return {
        name: lambda batches=batches: map(experiment.put, batches())
        for name, batches in experiment.data.held_out.items()
    }
