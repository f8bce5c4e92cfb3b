"""Ends the host when the engine is silent for too long, and leaves the stacks of all threads in the log."""

import faulthandler
import sys
import time


class Watchdog:
    """A deadline that the engine's heartbeats push on.

    The deadline is kept by faulthandler's own C thread, which needs no interpreter lock: it also ends a process whose
    main thread is stuck in native code. At the deadline the stacks are written to stderr and the process exits with 1.
    """

    def __init__(self, step_timeout_s: float) -> None:
        self._timeout_s = step_timeout_s
        # Setting the deadline starts a thread, so not every heartbeat does; it is set that much later instead.
        self._interval_s = min(1.0, step_timeout_s / 10)
        self._set_at = 0.0
        self._stepping = False

    def allow(self, timeout_s: float) -> None:
        """Gives one long piece of work, such as loading, so many seconds in all, whatever its heartbeats."""
        self._stepping = False
        faulthandler.dump_traceback_later(timeout_s, exit=True, file=sys.stderr)

    def beat(self) -> None:
        """The engine is alive: it has `step_timeout_s` from now. Cheap; does nothing unless steps are watched."""
        if self._stepping and time.monotonic() - self._set_at >= self._interval_s:
            self._set()

    def watch_steps(self) -> None:
        """The engine has work: from now on it has to give heartbeats."""
        if not self._stepping:
            self._stepping = True
            self._set()

    def rest(self) -> None:
        """The engine has nothing to do: no deadline."""
        self._stepping = False
        faulthandler.cancel_dump_traceback_later()

    def _set(self) -> None:
        self._set_at = time.monotonic()
        faulthandler.dump_traceback_later(self._timeout_s + self._interval_s, exit=True, file=sys.stderr)
