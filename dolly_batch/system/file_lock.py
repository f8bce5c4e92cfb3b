"""Locks on files between processes. The kernel releases them when the holder ends, whatever ends it.

Not by `filelock`, though Hugging Face's packages install it: the engine host and its clients need the standard library
alone, and staging works on file systems without locks, such as mounted object stores. There old versions of filelock
wait for ever, and newer ones may leave a marker file that outlives a killed holder.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_POLL_S = 0.02


@contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold the lock, waiting for at most `timeout_s`. Raises TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while (descriptor := try_lock(path)) is None:
        if time.monotonic() >= deadline:
            raise TimeoutError(f"the lock was not free within {timeout_s:g} s")
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        os.close(descriptor)


def try_lock(path: Path) -> int | None:
    """Take the lock if it is free: the descriptor that holds it until it is closed, else None.

    The holder may delete the file before it closes the descriptor; an attempt on the deleted file fails. Raises OSError
    where the file system has no locks.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    is_held = False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_held = os.fstat(descriptor).st_nlink > 0
    except BlockingIOError:
        pass
    finally:
        if not is_held:
            os.close(descriptor)
    return descriptor if is_held else None
