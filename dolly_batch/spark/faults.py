"""How a run ends other than well: signals, and any exception as one of ours."""

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dolly_batch.errors import DollyBatchError, Stopped

# The last line of a Python traceback: a dotted class name, at the line's start.
RAISED = re.compile(r"(?!org\.|java\.)[A-Za-z_][\w.]*(Error|Exception|Stopped|Refused)\b: ")


@contextmanager
def stopping_on_sigterm() -> Iterator[None]:
    """Treat SIGTERM, which clusters and schedulers send, as Ctrl-C."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def error_of(error: BaseException) -> DollyBatchError:
    """Any fault of a run as one of ours, so that every command ends with a message and an exit code."""
    if isinstance(error, DollyBatchError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Stopped("stopped by hand; finished waves are kept, and the same command goes on from there")
    return Stopped(_first_cause(error))


def _first_cause(error: BaseException) -> str:
    """What went wrong, in a line: of an error in a Python worker, its last line and not the trace above it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if RAISED.match(line)]
    if raised:
        return f"a task failed: {raised[-1].strip()}"
    return f"{type(error).__name__}: {lines[0].strip() if lines else 'no message'}"
