"""Processes: which one a pid means, what a child inherits, and how a process reports the error that ends it."""

import contextlib
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, NoReturn

from dolly_batch import errors
from dolly_batch.errors import DollyBatchError, EngineError, Refused

log = logging.getLogger("dolly_batch.system.process")

EXIT_FAULT = 70
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "MODELSCOPE_API_TOKEN")
_MAX_MESSAGE_CHARS = 2_000


class _Status(NamedTuple):
    """One line of the process table."""

    command: str
    state: str
    parent: int
    started: str


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, distinguished from a later one of the same pid by its start.

    `started` is opaque: on Linux, ticks since boot; "" is any start. `namespace` is the pid namespace that `pid` counts
    in, or "".
    """

    pid: int
    started: str
    namespace: str = ""

    @classmethod
    def of(cls, pid: int) -> "ProcessId":
        """The process that runs under `pid` now. Raises EngineError when there is none."""
        status = _status(pid)
        if status is None:
            raise EngineError(f"there is no process {pid}")
        return cls(pid, status.started, _pid_namespace())

    def is_alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        status = _status(self.pid)
        return status is not None and self.started in (status.started, "") and status.state[:1] not in ("Z", "X")

    def is_visible(self) -> bool:
        """Whether its pid means the same here: containers that share /tmp do not share pids."""
        return self.namespace == _pid_namespace()


def parent_jvm() -> ProcessId:
    """The nearest JVM above this process, which inside a Spark task is its executor. Raises EngineError if none."""
    pid = os.getpid()
    while pid > 0 and (status := _status(pid)) is not None:
        if status.command == "java":
            return ProcessId(pid, status.started, _pid_namespace())
        pid = status.parent
    raise EngineError(
        f"no JVM among the parents of process {os.getpid()}: an engine host belongs to a Spark executor; "
        "outside of Spark name the owning process yourself, HostAddress(ProcessId.of(pid))"
    )


def boot_id() -> str:
    """This boot of this machine: pids and file locks mean nothing beyond it. Empty where it cannot be determined."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def child_environment(num_threads: int | None = None) -> dict[str, str]:
    """This process's environment for a Python that is to import what this one imports, computing with `num_threads`.

    It holds no token of a hub: a child loads what is there.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _TOKENS}
    # The import path as it is, not as it was set: Spark adds shipped wheels to it while the worker runs.
    environment["PYTHONPATH"] = os.pathsep.join(import_path())
    environment["TOKENIZERS_PARALLELISM"] = "false"
    if num_threads is not None:
        environment["OMP_NUM_THREADS"] = environment["MKL_NUM_THREADS"] = str(num_threads)
    return environment


def import_path() -> list[str]:
    """Where this process imports from. Without the current folder, whose `torch.py` would be run in torch's place.

    Unless that folder was named in PYTHONPATH, or holds this package.
    """
    named = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    own = str(Path(errors.__file__).parent.parent)
    with contextlib.suppress(FileNotFoundError):  # of a current folder that was deleted
        here = os.getcwd()
        entries = (os.path.abspath(entry) for entry in sys.path)
        return [entry for entry in entries if entry != here or entry == own or entry in named]
    return [entry for entry in sys.path if os.path.isabs(entry)]


@dataclass(frozen=True, slots=True)
class ProcessFailure:
    """Why a process ended: the class of the error, and its message, empty where it could quote a row's text."""

    error: str
    message: str

    @classmethod
    def by(cls, error: BaseException) -> "ProcessFailure":
        """The failure of a process that ends by this error."""
        return cls(type(error).__name__, str(error)[:_MAX_MESSAGE_CHARS] if cls.is_quotable(type(error)) else "")

    @staticmethod
    def is_quotable(kind: type[BaseException]) -> bool:
        """Whether messages of this class are about the system or the job, and never hold a row's text."""
        return issubclass(kind, DollyBatchError | RuntimeError | OSError | ImportError | MemoryError)

    def refusal(self) -> Refused | None:
        """The error itself, to be raised again, if the process refused its work; else None."""
        kind = getattr(errors, self.error, None)
        return kind(self.message) if isinstance(kind, type) and issubclass(kind, Refused) else None

    def __str__(self) -> str:
        return f"{self.error}: {self.message}"


def end_by(error: BaseException, report: Callable[[ProcessFailure], None]) -> NoReturn:
    """Logs the error with its stack, reports it to those who wait for this process, and ends the process."""
    failure = ProcessFailure.by(error)
    log.error(
        "process %d ended by %s\n%s", os.getpid(), failure, "".join(traceback.format_tb(error.__traceback__)).rstrip()
    )
    with contextlib.suppress(OSError):  # the receiver has gone
        report(failure)
    os._exit(EXIT_FAULT)


def _status(pid: int) -> _Status | None:
    return _status_from_proc(pid) if sys.platform == "linux" else _status_from_ps(pid)


def _status_from_proc(pid: int) -> _Status | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return None
    # The command is in parentheses and may contain parentheses and blanks itself.
    head, _, tail = stat.rpartition(")")
    fields = tail.split()
    return _Status(head.partition("(")[2], fields[0], int(fields[1]), fields[19])


def _status_from_ps(pid: int) -> _Status | None:
    listing = subprocess.run(
        ["ps", "-o", "ppid=,state=,lstart=,comm=", "-p", str(pid)],
        env={**os.environ, "LC_ALL": "C"},
        capture_output=True,
        text=True,
        check=False,
    )
    if not listing.stdout.strip():
        return None
    parent, state, *started, command = listing.stdout.split(None, 7)
    return _Status(os.path.basename(command.strip()), state, int(parent), " ".join(started))


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
