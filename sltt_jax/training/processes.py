"""Several processes that train together, and end together when one of them is lost."""

import contextlib
import hashlib
import os
import re
import sys
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from sltt_jax.training.rendezvous import TIMEOUT, meet


def join(coordinator: str, processes: int | None = None, process: int | None = None):
    """Joins the other processes, before anything else is done with JAX.

    Args:
      coordinator: host:port of the first process, or "auto" where Slurm, MPI or the TPU pod tells all three.
      processes: how many there are.
      process: which this is, from 0.

    Raises:
      ConnectionError, ValueError: as `meet`; or JAX failed, or nothing tells what "auto" stands for.
    """
    address = None if coordinator == "auto" else coordinator
    print(f"waiting for all processes at {coordinator}", file=sys.stderr)
    if address is not None:
        meet(address, processes or 0, process or 0)
    try:
        # A process without a sign of life for so long counts as lost, and JAX ends the others.
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


def differing(texts: Mapping[str, str]) -> list[str]:
    """Names of the texts that are not the same on all processes, which must all call this."""
    if jax.process_count() == 1:
        return []
    digests = [np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8) for text in texts.values()]
    everywhere = multihost_utils.process_allgather(np.stack(digests))  # [processes, texts, bytes]
    same = (everywhere == everywhere[0]).all((0, 2))
    return [name for name, agreed in zip(texts, same, strict=True) if not agreed]


def same_everywhere(text: str) -> bool:
    """Tells whether all processes give the same text; all of them must call this."""
    return not differing({"": text})


def on_first(action: Callable[[], None]):
    """Has the first process do something while the others wait; all of them must call this.

    Raises:
      OSError, ValueError: raised by `action`, on the first process.
      ConnectionError: one of these was raised there, and this is another process.
    """
    fault = None
    if jax.process_index() == 0:
        try:
            action()
        except (OSError, ValueError) as error:
            fault = error
    agreed = same_everywhere("" if fault is None else "failed")
    if fault is not None:
        raise fault
    if not agreed:
        raise ConnectionError("the first process failed; its own message says why")
