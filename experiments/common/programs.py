"""The compiled update of a run, to tell its cost without data of its own."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
from common.measures import arguments
from common.runs import Experiment, Learned, Run, build

from sltt_jax import blocks, functional, training
from sltt_jax.analysis import Cost, accelerators, flops, program_cost

SITE = Path(".compilers")  # where `make compilers` installs those for GPUs and TPUs


class Program(NamedTuple):
    """The update of a run over a batch of a given size, traced; `state` and `batch` are what it takes."""

    experiment: Experiment
    traced: jax.stages.Traced
    state: Any
    batch: Any
    forward_flops: float
    backward_share: float

    def cost(self) -> tuple[jax.stages.Compiled, Cost]:
        """Compiles the program, and returns it and its cost."""
        return program_cost(self.traced, forward_flops=self.forward_flops, backward_share=self.backward_share)


def trace_update(settings: Run, batch: int, *, real: bool = False) -> Program:
    """Traces the update of a run, on made-up data of the form of its own.

    Costs do not depend on what is in the data, so that a batch of any size need not exist.

    Args:
      settings: the run.
      batch: samples of an update.
      real: with a state and a batch that exist, to be run.

    Raises:
      ValueError: a setting that cannot be.
    """
    made = batch if real else 1
    few = {"batch_size": made, "train_samples": made, "test_samples": 1, "made": True, "devices": 1}
    experiment = build(dataclasses.replace(settings, **few))
    key = jax.random.key(settings.seed)
    if real:
        state, data = experiment.initial_state(key), jax.device_put(experiment.data.batch)
    else:
        state = jax.eval_shape(experiment.initial_state, key)
        sized = lambda a: jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype)
        data = jax.tree.map(sized, experiment.data.batch)
    traced = jax.jit(experiment.update(), donate_argnums=0).trace(state, data)
    share = experiment.rule.backward_share(settings.T)
    return Program(experiment, traced, state, data, _forward_flops(experiment, state, data), share)


def cost_on(
    settings: Run, batch: int, target: str, site: Path, *, devices: int = 1
) -> accelerators.AcceleratorCost:
    """Compiles the update of a run for devices that need not be there, and returns its cost on each of them.

    Args:
      settings: the run.
      batch: samples of an update, of all devices together.
      target, site, devices: as for `accelerators.compile_devices`.

    Raises:
      ValueError: a setting that cannot be.
      FileNotFoundError: there is no such compiler in the folder `site`.
      MemoryError: the device has too little memory, as a TPU's compiler says.
    """
    training.check_divides(batch, devices)
    places = accelerators.compile_devices(target, site, devices)
    program = trace_update(settings, batch // devices)
    if devices == 1:
        (device,) = places
        there = jax.sharding.SingleDeviceSharding(device)
        state, data = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=there), (program.state, program.batch)
        )
        lowered = jax.jit(program.experiment.update(), donate_argnums=0).lower(state, data)
    else:
        update = program.experiment.update(training.AXIS)
        parts = lambda a: jax.ShapeDtypeStruct((devices, *a.shape), a.dtype)
        data = jax.tree.map(parts, program.batch)
        lowered = training.parallel(update, places, arguments=1, donate=True).lower(program.state, data)
    return accelerators.accelerator_cost(
        target,
        accelerators.compile_lowered(target, site, lowered),
        flops=flops(program.traced, backward_share=program.backward_share),
        precision=settings.precision,
        devices=devices,
        backward_share=program.backward_share,
    )


def _forward_flops(experiment: Experiment, state, batch) -> float:
    def forward(learned, batch):
        params, start, inputs, _ = arguments(experiment, learned, batch)
        return blocks.run(functional.applier(experiment.model, key=jax.random.key(0)), params, start, inputs)

    return flops(jax.jit(forward).trace(Learned(state.params, state.variables), batch))
