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


STOPPING = (signal.SIGINT, signal.SIGTERM)
GOES_ON = "finished waves are kept, and the same command goes on from there"


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Treat SIGTERM, which clusters and schedulers send, as Ctrl-C; both raise KeyboardInterrupt, once.

    Later ones are passed over: an impatient second Ctrl-C would only cut off the stopping itself. To be entered again
    after the session is opened, where pyspark puts in a handler of its own for Ctrl-C. Does nothing outside of the
    main thread.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        pass_over_signals()
        raise KeyboardInterrupt

    if not _in_main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def pass_over_signals() -> None:
    """Pay no heed to Ctrl-C and SIGTERM any more: what is being done is the stopping."""
    if _in_main_thread():
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def as_dolly_error(error: BaseException) -> DollyBatchError:
    """Any fault of a run as one of ours, so that every command ends with a message and an exit code."""
    if isinstance(error, DollyBatchError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Stopped(f"stopped by hand; {GOES_ON}")
    if isinstance(error, ConnectionError) or type(error).__name__ == "Py4JNetworkError":
        kind = type(error).__name__
        return Stopped(f"the connection to Spark is lost, its driver's JVM has ended ({kind}); {GOES_ON}")
    return Stopped(_first_cause(error))


def _first_cause(error: BaseException) -> str:
    """What went wrong, in a line: of an error in a Python worker, its last line and not the trace above it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    raised = [line for line in lines if RAISED.match(line)]
    if raised:
        return f"a task failed: {raised[-1].strip()}"
    return f"{type(error).__name__}: {lines[0].strip() if lines else 'no message'}"
