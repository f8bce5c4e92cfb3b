"""Starts of jobs that stop where they are told to: each is a thread that runs while it is let, one at a time."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from dolly_batch.spark import lock
from dolly_batch.spark.lock import BEAT_S, JobLock
from tests.store_model.disk import View

EPOCH = datetime(2020, 1, 1, tzinfo=UTC)


TO_THE_END = 100_000

LANDMARKS = {
    r"create .*/\.\w+\.lock": "lock",
    r"write .*/\.\w+\.lock": "take over",
    r"exists .*/_delta_log/look": "look at the output",
    r"write .*/beside\.json": "what was seen",
    r"write .*/manifest\.json": "manifest",
    r"delete .*/work/p\w+": "old plan's end",
    r"rename .*/work/p\w+": "plan",
    r"rename .*/staging/wave=\d+": "wave",
    r"exists .*/_delta_log/commit": "commit",
    r"exists .*/_delta_log/turn": "turn",
    r"write .*/published\.json": "published",
    r"write .*/complete\.json": "complete",
    r"write .*/abandoned\.json": "abandoned",
    r"delete .*/snapshot": "rows' end",
    r"delete .*/\.\w+\.lock": "unlock",
}
"""Calls of the file system that the model and Spark do in the same order; what they do to a Delta table by its name."""


def landmark(operation: str, path: str) -> str:
    """The name of a call that is one, else nothing."""
    call = f"{operation} {path}"
    return next((name for pattern, name in LANDMARKS.items() if re.fullmatch(pattern, call)), "")


class Killed(BaseException):
    """Nothing of the start's own runs after this, and nothing that it does reaches the disk."""


class Clock:
    """Time in a world, and the starts whose hearts beat as it passes."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.starts: list[Start] = []
        self.current: Start | None = None
        self.next_pid = 100
        self.is_beating = False
        self._next_beat_s = BEAT_S

    def stamp(self) -> str:
        """A new time of day, later than all before."""
        self.now_s += 0.001
        return (EPOCH + timedelta(seconds=self.now_s)).isoformat(timespec="microseconds")

    def pass_(self, seconds: float) -> None:
        """Let time go by; who lives and is not suspended beats."""
        end = self.now_s + seconds
        while not self.is_beating and self._next_beat_s <= end:
            self.now_s, self._next_beat_s = self._next_beat_s, self._next_beat_s + BEAT_S
            self.is_beating = True
            for start in self.starts:
                start.beat()
            self.is_beating = False
        self.now_s = max(self.now_s, end)


class Start:
    """One start of a job: `work` runs a number of file operations at a time."""

    at_landmarks = False
    """Whether it stops at those alone: at the first one that comes when it has done what it was let do."""

    def __init__(self, clock: Clock, disk: Any, host: str, work: Callable[["Start"], None]) -> None:
        self.clock, self.host = clock, host
        self.passed: list[str] = []
        self.stands_at = ""
        clock.next_pid += 1
        self.pid = clock.next_pid
        self.files = View(disk, self.pause)
        self.locks: list[JobLock] = []
        self.is_suspended = self.is_killed = self.is_over = self._is_beating = False
        self.fault: BaseException | None = None
        self._work, self._budget = work, 0
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        clock.starts.append(self)

    def _run(self) -> None:
        try:
            self._work(self)
        except BaseException as fault:
            self.fault = fault
        self.is_over = True
        self._back.release()

    def advance(self, num: int) -> None:
        """Let it do so many operations, or end. One that is never stopped needs no thread."""
        if self.is_over:
            return
        self._budget = num
        before, self.clock.current = self.clock.current, self
        if self._thread is not None:
            self._go.release()
            self._back.acquire()
        elif num >= TO_THE_END:
            self._run()
        else:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
            self._back.acquire()
        self.clock.current = before

    def kill(self) -> None:
        self.is_killed = True
        if self._thread is not None:
            self.advance(0)
        self.is_over = True
        self.locks.clear()

    def pause(self, operation: str, path: str) -> None:
        """Before an operation."""
        if self._is_beating:
            return
        if self._budget == 0 and self._thread is None:
            raise RuntimeError("it goes on for ever")
        self.stands_at = landmark(operation, path) if self.at_landmarks else ""
        while self._budget <= 0 and not self.is_killed and (self.stands_at or not self.at_landmarks):
            self._back.release()
            self._go.acquire()
        if self.is_killed:
            raise Killed
        self._budget -= 1
        self.passed += [self.stands_at] if self.stands_at else []

    def beat(self, late: bool = False) -> None:
        """What the threads of its locks do from time to time; `late`: one looked before this start was suspended."""
        if self.is_over or self.is_killed or (self.is_suspended and not late):
            return
        before, self.clock.current, self._is_beating = self.clock.current, self, True
        for held in self.locks:
            if late:
                self.files.write(held._path, held._text())
            else:
                held.beat()
        self.clock.current, self._is_beating = before, False


@contextmanager
def locks_of(clock: Clock, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the job's lock live in this world: its clock, its processes, its heartbeats."""

    def current() -> Start:
        assert clock.current is not None
        return clock.current

    class Beats:
        """In place of the lock's thread."""

        def __init__(self, target: Callable[[], None], **_: object) -> None:
            self.lock: JobLock = target.__self__  # type: ignore[attr-defined]

        def start(self) -> None:
            current().locks.append(self.lock)

        def join(self) -> None:
            current().locks.remove(self.lock)

    class Process:
        def __init__(self, pid: int, started: str) -> None:
            self.pid = pid

        def is_alive(self) -> bool:
            return any(start.pid == self.pid and not (start.is_killed or start.is_over) for start in clock.starts)

    patch.setattr(lock, "time", SimpleNamespace(monotonic=lambda: clock.now_s, sleep=clock.pass_))
    patch.setattr(lock, "threading", SimpleNamespace(Event=threading.Event, Thread=Beats))
    patch.setattr(lock, "_host", lambda: current().host)
    patch.setattr(lock, "_this_process", lambda: {"host": current().host, "pid": current().pid, "started": "then"})
    patch.setattr(lock, "ProcessId", Process)
    yield
