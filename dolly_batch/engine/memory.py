"""What running out of memory looks like, and what is learnt from it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


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
