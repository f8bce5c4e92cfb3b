"""Signals, and any exception as one of errors.py."""

import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException

from dolly_batch.errors import DollyBatchError, Stopped
from dolly_batch.spark.causes import raised_in_task, reason
from dolly_batch.system.process import ProcessFailure

STOPPING = (signal.SIGINT, signal.SIGTERM)
RESUMES = "finished waves are kept; run the same command to resume"


@contextmanager
def stopping_on_signals() -> Iterator[None]:
    """Treat SIGTERM, which clusters and schedulers send, as Ctrl-C: both raise KeyboardInterrupt, once.

    Later signals are ignored, since a second Ctrl-C would only interrupt the stopping. Enter this context again after
    the session is opened, because pyspark installs a handler for Ctrl-C. Outside the main thread it does nothing.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        ignore_signals()
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


def ignore_signals() -> None:
    """Ignore Ctrl-C and SIGTERM from now on: the process is stopping already."""
    if _in_main_thread():
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def as_dolly_error(error: BaseException) -> DollyBatchError:
    """Any exception of a run as a DollyBatchError, so that every command ends with a message and an exit code."""
    if isinstance(error, DollyBatchError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return Stopped(f"interrupted; {RESUMES}")
    if isinstance(error, ConnectionError) or type(error).__name__ == "Py4JNetworkError":
        kind = type(error).__name__
        return Stopped(f"the connection to Spark is lost: its driver's JVM has ended ({kind}); {RESUMES}")
    return Stopped(_first_cause(error))


@contextmanager
def raising_by_name() -> Iterator[None]:
    """Raise what a block raises as a DollyBatchError, from what it was; Ctrl-C stays what it is."""
    try:
        yield
    except DollyBatchError:
        raise
    except Exception as error:
        raise as_dolly_error(error) from error


def _first_cause(error: BaseException) -> str:
    """The error in one line; of an error in a Python worker, what it was raised by; of Spark's, its cause."""
    if isinstance(error, (PySparkException, Py4JError)):
        raised = raised_in_task(error)
        return f"Spark stopped: {reason(error)}" if raised is None else f"a task failed: {raised}"
    lines = [line.strip() for line in ProcessFailure.by(error).message.splitlines() if line.strip()]
    if lines or not str(error):
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    return f"{type(error).__name__}{_place(error)} (its message may quote a row, and is left out)"


def _place(error: BaseException) -> str:
    """Where in the code an error was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
