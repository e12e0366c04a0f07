"""Stopping a run from outside: Ctrl-C and SIGTERM are noted, and obeyed between two updates."""

import os
import signal
import sys
import threading

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

    The first Ctrl-C asks the run to stop, the second does what it did before. With several processes a
    request to any of them stops all at the same update: JAX's coordination service agrees on it.

    Args:
      at_once: raise a KeyboardInterrupt at each signal, where there is no state to save. Python drops one
        that is raised in a callback of the garbage collector; the signal is noted all the same, asked of the
        requests of a `with` statement inside this one, and sent again until it is obeyed.

    Raises:
      Stopped: at the end of the `with` statement, for a request that nobody obeyed.
    """

    def __init__(self, *, at_once: bool = False):
        self._at_once, self._asked = at_once, None
        self._again = threading.Timer(0, lambda: None)

    def __enter__(self) -> "StopRequests":
        # With several processes jax.distributed watches for SIGTERM; they are joined with `at_once`.
        alone = self._at_once or jax.process_count() == 1
        numbers = (signal.SIGINT, signal.SIGTERM) if alone else (signal.SIGINT,)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        if self._at_once:
            self._hook, sys.unraisablehook = sys.unraisablehook, self._dropped
        around = getattr(self._before[signal.SIGINT], "__self__", None)
        if isinstance(around, StopRequests):
            self._asked = around._asked
        return self

    def __exit__(self, kind, error, traceback):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._at_once:
            sys.unraisablehook = self._hook
            self._again.cancel()
        if kind is None and self._asked is not None:
            raise Stopped(self._asked)

    def _note(self, number, frame):
        self._asked = signal.Signals(number)
        if self._at_once:
            raise KeyboardInterrupt
        signal.signal(number, self._before[number])
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def _dropped(self, unraisable):
        if self._asked is None or unraisable.exc_type is not KeyboardInterrupt:
            return self._hook(unraisable)
        # Not from here, where what a handler raises is dropped as well.
        self._again = threading.Timer(0.05, os.kill, (os.getpid(), self._asked))
        self._again.start()

    @property
    def noted(self) -> signal.Signals | None:
        """Signal that this process got, obeyed or not."""
        return self._asked

    def asked(self, update: int) -> signal.Signals | None:
        """Returns the signal that asks to stop after this update, the same on all processes, or None."""
        if jax.process_count() > 1:
            stop = multihost_utils.reached_preemption_sync_point(update)
            return (self._asked or signal.SIGTERM) if stop else None
        return self._asked
