"""Stopping a run from outside: Ctrl-C and SIGTERM are noted, and obeyed between two updates."""

import os
import signal

import jax
from jax.experimental import multihost_utils


class Stopped(Exception):
    """Raised when a run was asked to stop, and saved its state.

    Attributes:
      signal: what it was asked by; a shell gives such a program the exit status `128 + signal`.
    """

    def __init__(self, number: signal.Signals):
        super().__init__(f"stopped by {number.name}")
        self.signal = number


class StopRequests:
    """Takes the place of the handlers of SIGINT and SIGTERM, in a `with` statement of the main thread.

    The first Ctrl-C asks the run to stop, the second interrupts at once. With several processes a request to
    any of them stops all at the same update: JAX's coordination service agrees on it.
    """

    def __enter__(self) -> "StopRequests":
        self._asked = None
        self._before = {signal.SIGINT: signal.signal(signal.SIGINT, self._note)}
        if jax.process_count() == 1:  # otherwise jax.distributed watches for SIGTERM
            self._before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *raised):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        self._asked = signal.Signals(number)
        signal.signal(number, self._before[number])
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def asked(self, update: int) -> signal.Signals | None:
        """Returns the signal that asks to stop after this update, the same on all processes, or None."""
        if jax.process_count() > 1:
            stop = multihost_utils.reached_preemption_sync_point(update)
            return (self._asked or signal.SIGTERM) if stop else None
        return self._asked
