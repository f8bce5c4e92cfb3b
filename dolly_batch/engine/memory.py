"""Memory: how much there is, how much of it rows may take, and what running out of it looks like."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)
_CGROUP = Path("/sys/fs/cgroup")


@contextmanager
def allocator_errors() -> Iterator[None]:
    """Raise MemoryError where torch's CPU allocator raises a RuntimeError, known by nothing but its text."""
    try:
        yield
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):
            raise
        message = str(error)
    else:
        return
    raise MemoryError(message)  # out of the except block, where the traceback would keep the step's tensors alive


def available_bytes() -> int:
    """Memory that this process may still take without swapping, its container's limit considered."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") if hasattr(os, "sysconf") else 4 * 2**30
    try:
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
        available = 1024 * int(meminfo.partition("MemAvailable:")[2].split()[0])
    except (OSError, ValueError, IndexError):
        pass
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = (_CGROUP / "memory.current").read_text(encoding="ascii")
        if limit != "max":
            available = min(available, int(limit) - int(used))
    except (OSError, ValueError):
        pass
    return max(0, available)


class RowLimit:
    """How many rows may run at once: halved whenever memory runs out, and remembered.

    A row that fails even alone says nothing about other rows: it puts the limit back to what it was before.
    """

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self._before = max_rows

    def fail(self, num_rows: int) -> None:
        """A step of so many rows ran out of memory."""
        if num_rows > 1:
            self.max_rows = num_rows // 2
        else:
            self.max_rows = self._before
