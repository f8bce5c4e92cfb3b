"""One active start of a job at a time, as well as a shared folder can tell. Correctness is the commit's business."""

import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType

from dolly_batch.errors import AlreadyRunning, DollyBatchError
from dolly_batch.spark.files import Files

BEAT_S = 5.0
PATIENCE_S = 3 * BEAT_S


class JobLock:
    """The lock file of a job, beaten every few seconds while its owner lives.

    A start that finds it held by a dead process of this machine takes it over at once; one held elsewhere is watched
    for `PATIENCE_S`, and taken over when it does not beat.
    """

    def __init__(self, files: Files, path: str, patience_s: float = PATIENCE_S) -> None:
        self._files = files
        self._path = path
        self._patience_s = patience_s
        self._token = uuid.uuid4().hex
        self._beats = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="dolly-batch-lock")

    def __enter__(self) -> "JobLock":
        """Take the lock. Raises AlreadyRunning, naming who holds it."""
        if not self._files.create(self._path, self._text()):
            self._wait_for_death()
            self._files.write(self._path, self._text())
            # Two starts may have found the same dead owner: the last to write is the one that goes on.
            time.sleep(0.2)
            self.check()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        """Give it back, unless somebody has taken it over: then a fault that this led to is told as that.

        Raises AlreadyRunning in place of an exception that has no name of ours, such as that of a staged file which
        the other start has cleared away.
        """
        self._done.set()
        self._thread.join()
        if self._holder().get("token") == self._token:
            self._files.delete(self._path)
        elif isinstance(value, Exception) and not isinstance(value, DollyBatchError):
            raise self._taken_over() from value

    def check(self) -> None:
        """Raise AlreadyRunning when another start has taken over, as it may after this process was long suspended."""
        if self._holder().get("token") != self._token:
            raise self._taken_over()

    def _taken_over(self) -> AlreadyRunning:
        return AlreadyRunning(f"another start of this job has taken over{_who(self._holder())}; this one stops")

    def _text(self) -> str:
        return json.dumps({"token": self._token, "beats": self._beats, **_this_process()})

    def _holder(self) -> dict[str, object]:
        text = self._files.read(self._path)
        try:
            holder: dict[str, object] = json.loads(text) if text else {}
        except ValueError:  # it is being written
            return {}
        return holder

    def _wait_for_death(self) -> None:
        first = self._holder()
        if _is_dead_here(first):
            return
        if first.get("host") == _this_process()["host"] and _is_alive_here(first):
            raise AlreadyRunning(f"another start of this job is active{_who(first)}")
        deadline = time.monotonic() + self._patience_s
        while time.monotonic() < deadline:
            time.sleep(min(0.5, self._patience_s / 4))
            now = self._holder()
            if now != first and now:
                raise AlreadyRunning(f"another start of this job is active{_who(now)}")

    def _beat(self) -> None:
        while not self._done.wait(BEAT_S):
            if self._holder().get("token") != self._token:
                return
            self._beats += 1
            self._files.write(self._path, self._text())


def _this_process() -> dict[str, object]:
    return {"host": _host(), "pid": os.getpid(), "started": _start_of(os.getpid())}


def _host() -> str:
    """This boot of this machine: a pid means nothing outside of it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()}/{boot}"


def _start_of(pid: object) -> str | None:
    """When a process began, in clock ticks since boot; None when it is gone, a zombie, or cannot be told."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def _is_dead_here(holder: dict[str, object]) -> bool:
    if holder.get("host") != _host():
        return False
    return _start_of(holder.get("pid")) != holder.get("started") or not _exists(holder.get("pid"))


def _is_alive_here(holder: dict[str, object]) -> bool:
    return _exists(holder.get("pid")) and _start_of(holder.get("pid")) == holder.get("started")


def _exists(pid: object) -> bool:
    try:
        os.kill(int(str(pid)), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _who(holder: dict[str, object]) -> str:
    if not holder:
        return ""
    host = str(holder.get("host", "")).split("/")[0]
    return f" (process {holder.get('pid')} on {host})"
