"""Ends a process whose engine gives no heartbeat for too long, and leaves the stacks of all threads in its log."""

import faulthandler
import sys
import time
from collections.abc import Callable

_INTERVAL_S = 0.2


class Watchdog:
    """A deadline that each heartbeat of the engine postpones.

    The deadline is kept by faulthandler's own C thread, which needs no interpreter lock: it also ends a process whose
    main thread is stuck in native code. At the deadline the stacks are written to stderr and the process exits with 1.
    `on_beat` is called with the heartbeats, at most every `_INTERVAL_S`.
    """

    def __init__(self, step_timeout_s: float, on_beat: Callable[[], None] = lambda: None) -> None:
        self._timeout_s = step_timeout_s
        self._on_beat = on_beat
        # Setting the deadline starts a thread, so not every heartbeat does; it is set that much later instead.
        self._interval_s = min(_INTERVAL_S, step_timeout_s / 10)
        self._set_at = 0.0
        self._armed = False

    def allow(self, timeout_s: float) -> None:
        """Gives one long piece of work, such as loading, so many seconds in all, whatever its heartbeats."""
        self._armed = False
        faulthandler.dump_traceback_later(timeout_s, exit=True, file=sys.stderr)

    def arm(self) -> None:
        """The engine has work: from now on it has to give heartbeats."""
        if not self._armed:
            self._armed = True
            self._postpone()

    def beat(self) -> None:
        """The engine is alive: it has `step_timeout_s` from now. Cheap; does nothing unless armed."""
        if self._armed and time.monotonic() - self._set_at >= self._interval_s:
            self._postpone()

    def disarm(self) -> None:
        """The engine has nothing to do: no deadline."""
        self._armed = False
        faulthandler.cancel_dump_traceback_later()

    def _postpone(self) -> None:
        self._set_at = time.monotonic()
        faulthandler.dump_traceback_later(self._timeout_s + self._interval_s, exit=True, file=sys.stderr)
        self._on_beat()
