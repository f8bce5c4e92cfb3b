"""The process that an engine host belongs to: on a cluster, the executor's JVM."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dolly_batch.errors import EngineError


class _Status(NamedTuple):
    """One line of the process table."""

    command: str
    state: str
    parent: int
    started: str


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, told apart from a later one of the same pid by its start.

    `started` is opaque: on Linux, ticks since boot. `namespace` is the pid namespace that `pid` counts in, or "".
    """

    pid: int
    started: str
    namespace: str = ""

    @classmethod
    def of(cls, pid: int) -> "ProcessId":
        """The process that runs under `pid` now. Raises EngineError when there is none."""
        status = _status(pid)
        if status is None:
            raise EngineError(f"no process {pid} to own an engine host")
        return cls(pid, status.started, _pid_namespace())

    def is_alive(self) -> bool:
        """Whether this very process still runs; a zombie does not."""
        status = _status(self.pid)
        return status is not None and status.started == self.started and not status.state.startswith("Z")

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


def _status(pid: int) -> _Status | None:
    return _status_from_proc(pid) if sys.platform == "linux" else _status_from_ps(pid)


def _status_from_proc(pid: int) -> _Status | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command stands in brackets and may hold brackets and blanks itself.
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
