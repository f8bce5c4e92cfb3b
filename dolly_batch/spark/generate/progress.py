"""How far running tasks are: each writes its counts to a small file, and the driver adds them up. For display only."""

import contextlib
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from pyspark import TaskContext

WRITE_EVERY_S = 1.0
MAX_READ = 8  # waves, the first ones that are not finished: more may run, and count when they are


@dataclass
class TaskProgress:
    """The counts of one task, written to a folder that the driver sees too; None where there is no such folder.

    A file that cannot be written is no error: nothing is decided by it.
    """

    folder: str | None
    num_rows: int = 0
    num_tokens: int = 0
    _written: float = field(default_factory=time.monotonic)

    def add(self, num_tokens: int) -> None:
        """Count one answered row."""
        self.num_rows += 1
        self.num_tokens += num_tokens
        if time.monotonic() - self._written >= WRITE_EVERY_S:
            self.write()

    def write(self) -> None:
        """Write the counts."""
        self._written = time.monotonic()
        context = TaskContext.get()
        if self.folder is None or context is None:
            return
        with contextlib.suppress(OSError):
            path = Path(self.folder) / str(context.partitionId())
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{context.taskAttemptId()}")
            partial.write_text(f"{self.num_rows} {self.num_tokens}", encoding="ascii")
            os.replace(partial, path)


@dataclass
class PlanProgress:
    """How far a plan is, over all its waves, in their order. Only the files of waves that may be running are read."""

    num_rows: Sequence[tuple[int, int]]
    """The number of each wave, and its rows."""
    folder: Callable[[int], str | None]
    _num_tokens: dict[int, int] = field(default_factory=dict)

    def read(self, finished: Collection[int]) -> tuple[int, int]:
        """Rows answered, and tokens generated since this start; `finished` are numbers of waves."""
        total_rows = sum(num_rows for wave, num_rows in self.num_rows if wave in finished)
        unfinished = ((wave, num_rows) for wave, num_rows in self.num_rows if wave not in finished)
        for wave, in_wave in islice(unfinished, MAX_READ):
            num_rows, self._num_tokens[wave] = read_progress(self.folder(wave))
            total_rows += min(num_rows, in_wave)
        return total_rows, sum(self._num_tokens.values())


def read_progress(folder: str | None) -> tuple[int, int]:
    """Rows and tokens so far, over all tasks that write to a folder; zeros where there is none (yet)."""
    total_rows = total_tokens = 0
    for path in Path(folder).glob("[!.]*") if folder is not None else ():
        with contextlib.suppress(OSError, ValueError):
            num_rows, num_tokens = map(int, path.read_text(encoding="ascii").split())
            total_rows, total_tokens = total_rows + num_rows, total_tokens + num_tokens
    return total_rows, total_tokens
