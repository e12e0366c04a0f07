"""Several processes that train together, and end together when one of them is lost."""

import contextlib
import hashlib
import os
import re
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

# After so many seconds without a sign of life a process counts as lost, and JAX ends the others.
TIMEOUT = 30


def join(coordinator: str, processes: int | None = None, process: int | None = None):
    """Joins the other processes, before anything else is done with JAX.

    Args:
      coordinator: host:port of the first process, or "auto" where Slurm, MPI or the TPU pod tells all three.
      processes: how many there are.
      process: which this is, from 0.

    Raises:
      ConnectionError: this is the first process, and it cannot listen at that port.
      ValueError: nothing tells what "auto" stands for, or `process` is not in 0..processes-1.
    """
    print(f"waiting for all processes at {coordinator}", file=sys.stderr)
    address = None if coordinator == "auto" else coordinator
    try:
        jax.distributed.initialize(
            address, processes, process, heartbeat_timeout_seconds=TIMEOUT, shutdown_timeout_seconds=TIMEOUT
        )
    except jax.errors.JaxRuntimeError as error:
        raise ConnectionError(f"no processes could be joined at {coordinator}: {error}") from error


@contextlib.contextmanager
def together():
    """Makes the error of a collective operation of several processes one that says what it means.

    Raises:
      ConnectionError: another process ended, or XLA failed in this one.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # XLA's errors are of either type, and begin with the name of a status: "UNKNOWN: Gloo AllReduce ..."
        if jax.process_count() == 1 or not re.match("[A-Z_]+: ", str(error)):
            raise
        raise ConnectionError(
            f"process {jax.process_index()} cannot go on, most likely because another one ended: {error}"
        ) from error


def leave(status: int):
    """Ends this process at once; at an ordinary exit JAX waits for the others, who may wait for this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def wait_for_all(what: str):
    """Returns when all processes have come to the same point; `what` names it."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def same_everywhere(text: str) -> bool:
    """Tells whether all processes give the same text; all of them must call this."""
    if jax.process_count() == 1:
        return True
    mine = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    everywhere = multihost_utils.process_allgather(mine)
    return bool((everywhere == mine).all())
