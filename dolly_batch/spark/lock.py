"""Keeps a second start of a job out while one is active, by a lock file with a heartbeat.

Without locks in the file system this cannot be exact: correctness rests on the commit alone.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from types import TracebackType

from dolly_batch.errors import AlreadyRunning, DollyBatchError, Stopped
from dolly_batch.spark.files import Files
from dolly_batch.system.process import ProcessId, boot_id

BEAT_S = 5.0
PATIENCE_S = 3 * BEAT_S
# How often, and how far apart, the file is looked at before it says that the lock is lost: a file system without an
# atomic overwrite has none for a moment while it is rewritten, and any may fail for a moment.
LOOKS, LOOK_S = 5, 0.2


class JobLock:
    """The lock file of a job, rewritten every `BEAT_S` while its holder runs.

    A start that finds the lock of a dead process of this machine takes it over at once. One that is held on another
    machine it watches for `PATIENCE_S`, and takes over when there is no heartbeat; with `by_heartbeat` also one of
    this machine, whose process may be suspended.
    """

    def __init__(self, files: Files, path: str, patience_s: float = PATIENCE_S, *, by_heartbeat: bool = False) -> None:
        self._by_heartbeat = by_heartbeat
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
            # Two starts may have taken over from the same dead process: the last to write is the one that continues.
            time.sleep(0.2)
            self.check()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        """Release the lock, unless another start has taken it over.

        Then AlreadyRunning is raised in place of an exception that is not a DollyBatchError: it is the likely cause, as
        when the other start has deleted a staged file.
        """
        self._done.set()
        self._thread.join()
        try:
            is_mine = self._is_mine()
        except Exception:  # the file stays, without a heartbeat: the next start takes it over
            return
        if is_mine:
            with contextlib.suppress(Exception):
                self._files.delete(self._path)
        elif isinstance(value, Exception) and not isinstance(value, DollyBatchError):
            raise self._taken_over() from value

    def check(self) -> None:
        """Raise AlreadyRunning when another start has taken over, as it may after this process was long suspended.

        What the file system raises passes only when it fails again and again.
        """
        if not self._is_mine():
            raise self._taken_over()

    def _is_mine(self) -> bool:
        """Whether the file names this start. One that is missing, or cannot be read, is looked at again."""
        for look in range(LOOKS):
            if look:
                time.sleep(LOOK_S)
            try:
                holder = self._holder()
            except Exception:  # of the file system: OSError here, an error of Java there
                if look == LOOKS - 1:
                    raise
                continue
            if holder:
                return holder.get("token") == self._token
        return False

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
        alive = _is_alive(first)
        if alive and not self._by_heartbeat:
            raise AlreadyRunning(f"another start of this job is active{_who(first)}")
        if alive is False:
            return
        deadline = time.monotonic() + self._patience_s
        while time.monotonic() < deadline:
            time.sleep(min(0.5, self._patience_s / 4))
            now = self._holder()
            if now != first and now:
                raise AlreadyRunning(f"another start of this job is active{_who(now)}")

    def _beat(self) -> None:
        is_mine = True
        while is_mine and not self._done.wait(BEAT_S):
            with contextlib.suppress(Exception):  # the next beat tries again: one that fails is no end
                is_mine = self.beat()

    def beat(self) -> bool:
        """Give a sign of life; False, without one, where another start has taken over."""
        is_mine = self._is_mine()
        if is_mine:
            self._beats += 1
            self._files.write(self._path, self._text())
        return is_mine


def is_held(files: Files, path: str, patience_s: float = PATIENCE_S) -> bool:
    """Whether a start holds the lock: its process runs here, or, elsewhere, gives a heartbeat within the patience."""
    if not files.exists(path):
        return False
    try:
        JobLock(files, path, patience_s)._wait_for_death()
    except AlreadyRunning:
        return True
    return False


@contextlib.contextmanager
def alone(files: Files, path: str, name: str, wait_s: float = 60.0) -> Iterator[Callable[[], None]]:
    """Be the only one that adds to the output `name`; yields what raises when another one has taken over.

    Waits for another that does. Raises Stopped where that goes on for `wait_s` and longer.
    """
    deadline = time.monotonic() + wait_s
    with contextlib.ExitStack() as held:
        while True:
            try:
                lock = held.enter_context(JobLock(files, path, by_heartbeat=True))
                break
            except AlreadyRunning as busy:
                if time.monotonic() > deadline:
                    raise Stopped(
                        f"another job is adding its rows to {name} ({busy}). The answers are kept: run the same "
                        "command again to publish them"
                    ) from busy
            time.sleep(1.0)
        yield lock.check


def _this_process() -> dict[str, object]:
    # Earlier versions know starts from /proc alone: elsewhere they take any other for that of a dead process.
    started = ProcessId.of(os.getpid()).started if sys.platform == "linux" else None
    return {"host": _host(), "pid": os.getpid(), "started": started}


def _host() -> str:
    """This boot of this machine: a pid means nothing outside of it."""
    return f"{socket.gethostname()}/{boot_id()}"


def _is_alive(holder: dict[str, object]) -> bool | None:
    """Whether the holder's process runs; None where that cannot be seen, on another machine or before a reboot."""
    if holder.get("host") != _host():
        return None
    try:
        pid = int(str(holder.get("pid")))
    except ValueError:
        return False
    return ProcessId(pid, str(holder.get("started") or "")).is_alive()


def _who(holder: dict[str, object]) -> str:
    if not holder:
        return ""
    host = str(holder.get("host", "")).split("/")[0]
    return f" (process {holder.get('pid')} on {host})"
