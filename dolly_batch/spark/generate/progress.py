"""How far running tasks are: each tells its counts, and the driver adds them up. For display only.

A task writes its counts to a small file in a folder that the driver sees too. Where there is no such folder (a work_dir
that only Hadoop reaches), it tells them once, when it ends, by an accumulator of Spark's.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from pyspark import AccumulatorParam, TaskContext

WRITE_EVERY_S = 1.0


@dataclass(frozen=True)
class TaskCounts:
    """What one task has done so far, or several together; then `seconds` are added up and `host` is empty."""

    num_rows: int = 0
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    """Tokens that were generated."""
    num_errors: int = 0
    seconds: float = 0.0
    host: str = ""
    """The machine that it ran on."""


Tasks = Mapping[int, TaskCounts]
"""The tasks of one Spark job, by their numbers."""


class EndedTasks(AccumulatorParam[dict[tuple[int, int], TaskCounts]]):
    """An accumulator of ended tasks, by wave and task: one that Spark runs twice counts once."""

    def zero(self, value: Any) -> dict[tuple[int, int], TaskCounts]:
        """No task has ended."""
        return {}

    def addInPlace(self, value1: Any, value2: Any) -> dict[tuple[int, int], TaskCounts]:  # noqa: N802 - Spark's name
        """Both together."""
        value1.update(value2)
        return value1  # type: ignore[no-any-return]


@dataclass(frozen=True)
class WaveProgress:
    """Where the tasks of one wave tell how far they are. It crosses to executors."""

    wave: int = 0
    folder: str | None = None
    ended: Any = None
    """An accumulator of `EndedTasks`, where there is no folder."""


@dataclass
class TaskProgress:
    """The counts of one task. What cannot be told is no error: nothing is decided by it."""

    to: WaveProgress
    num_rows: int = 0
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    num_errors: int = 0
    _began: float = field(default_factory=time.monotonic)
    _written: float = field(default_factory=time.monotonic)

    def add(self, num_tokens: int, num_prompt_tokens: int = 0, *, is_error: bool = False) -> None:
        """Count one answered row."""
        self.num_rows += 1
        self.num_prompt_tokens += num_prompt_tokens
        self.num_tokens += num_tokens
        self.num_errors += is_error
        if time.monotonic() - self._written >= WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Write the counts, where there is a folder for them."""
        self._written = time.monotonic()
        context = TaskContext.get()
        if self.to.folder is None or context is None:
            return
        with contextlib.suppress(OSError):
            path = Path(self.to.folder) / str(context.partitionId())
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{context.taskAttemptId()}")
            partial.write_text(json.dumps(astuple(self._counts())), encoding="ascii")
            os.replace(partial, path)

    def end(self) -> None:
        """Tell the counts of the whole task."""
        self.write()
        context = TaskContext.get()
        if self.to.ended is not None and context is not None:
            self.to.ended.add({(self.to.wave, context.partitionId()): self._counts()})

    def _counts(self) -> TaskCounts:
        seconds = round(time.monotonic() - self._began, 3)
        counts = (self.num_rows, self.num_prompt_tokens, self.num_tokens, self.num_errors)
        return TaskCounts(*counts, seconds, socket.gethostname())


def read_tasks(folder: str | None) -> Tasks:
    """The tasks that write to a folder, as far as they are; none where there is no folder (yet)."""
    found: dict[int, TaskCounts] = {}
    names: list[str] = []
    with contextlib.suppress(OSError):
        names = os.listdir(folder) if folder is not None else []
    for name in names:
        with contextlib.suppress(OSError, ValueError, TypeError):  # a draft, or of another version
            found[int(name)] = TaskCounts(*json.loads(Path(str(folder), name).read_text(encoding="ascii")))
    return found


def together(tasks: Iterable[TaskCounts]) -> TaskCounts:
    """The counts of several tasks, added up."""
    total = TaskCounts()
    for task in tasks:
        pairs = zip(astuple(total)[:-1], astuple(task)[:-1], strict=True)
        total = TaskCounts(*(mine + other for mine, other in pairs))
    return total


def rows_and_tokens(folder: str | None) -> tuple[int, int]:
    """Rows and tokens so far, over all tasks that write to a folder."""
    total = together(read_tasks(folder).values())
    return total.num_rows, total.num_tokens
