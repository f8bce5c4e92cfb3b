"""Fetching packages from Maven: two processes that fill Ivy's cache at once break it, and Spark does not start."""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from dolly_batch.spark.session.environment import user_cache


@contextmanager
def fetching_alone(environ: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Hold a lock that only one process of this user has at a time. Where none can be made, go on without it.

    The kernel lets go of it when a process ends, whatever ends it.
    """
    lock = None
    with suppress(OSError):
        lock = _open(environ)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _open(environ: Mapping[str, str]) -> int:
    folder = user_cache(environ)
    folder.mkdir(parents=True, exist_ok=True)
    return os.open(folder / "packages.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
