"""This library over all devices, a part of the batch on each; `benchmark.py` simulates them on a CPU.

It is the same update, with batch normalisation by the statistics of the whole batch.
"""

import time

from peers import jax_program, with_sltt_jax
from peers.protocol import CannotError, Program
from peers.workloads import Workload
from sltt_jax import parse_rule, training
from sltt_jax.cpu import tune_xla

about = with_sltt_jax.about


def program(workload: Workload, rule: str, precision: str) -> Program:
    """An update under a rule, compiled.

    Raises:
      CannotError: there is one device, or the batch cannot be shared by those that there are.
    """
    tune_xla()
    devices = training.local_devices()
    if len(devices) == 1:
        raise CannotError("there is only one device")
    try:
        training.check_divides(workload.batch, len(devices))
    except ValueError as error:
        raise CannotError(str(error)) from error
    found = parse_rule(rule)
    update, state, batch = with_sltt_jax.make_update(workload, found, precision, axis_name=training.AXIS)
    state, batch = training.replicate(state, devices), training.split(batch, devices)
    began = time.perf_counter()
    compiled = training.parallel(update, devices, arguments=1, donate=True).lower(state, batch).compile()
    seconds = time.perf_counter() - began
    return jax_program.as_program(
        compiled,
        state,
        batch,
        loss_of=lambda metrics: metrics.loss,
        compile_seconds=seconds,
        devices=len(devices),
    )
