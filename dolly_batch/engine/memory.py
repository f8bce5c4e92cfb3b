"""Memory: taking it from the system, giving it back, and running out of it."""

import ctypes
import math
import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PIECE_BYTES, _LINE_BYTES = 2**25, 64
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)


# What a RuntimeError says that means it: torch's CPU allocator; CUDA outside of torch's allocator, as a recorded graph,
# a kernel's module (Triton) or a thread's stack; cuBLAS for its work space.
_SAY_OUT_OF_MEMORY = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED")


@contextmanager
def allocator_errors() -> Iterator[None]:
    """Raise MemoryError where a RuntimeError says, by nothing but its text, that there was no memory."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or not any(text in str(error) for text in _SAY_OUT_OF_MEMORY):
            raise
        message = str(error)
    else:
        return
    raise MemoryError(message)  # out of the except block, where the traceback would keep the step's tensors alive


def map_zeros(count: int, dtype: torch.dtype) -> Tensor:
    """Return zeros in their own mapping: memory is taken as it is written to, and given back with the tensor.

    From the heap it would be neither, below the C library's threshold. Raises MemoryError where there is none.
    """
    try:
        memory = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no memory for {count * dtype.itemsize:,} bytes of keys and values") from error
    return torch.frombuffer(memory, dtype=dtype)


class Arena:
    """Memory for what stays: arrays that begin with a line of the cache, many of them on one huge page.

    On pages of 4 KB a virtual machine may read a matrix at a fifth of the memory's speed: it looks up each page anew.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.uint8)
        self._used = 0

    def take(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An array, not initialized. Its memory is given back with the last array of the same piece."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if size > len(self._memory) - self._used:
            self._memory, self._used = _map_huge(max(size, _PIECE_BYTES)), 0
        start = self._used
        self._used += -(-size // _LINE_BYTES) * _LINE_BYTES
        return self._memory[start : start + size].view(dtype).reshape(shape)


def _map_huge(num_bytes: int) -> Any:
    memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def trim_heap() -> None:
    """Give memory that has been freed back to the system, where the C library can: glibc keeps much of it.

    Loading frees a model's worth of it, part of that in heaps of threads which have ended.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
