"""Builds a folder so that it appears under its name complete or not at all, even if processes race or are killed.

It is built as `.NAME.partial-KERNEL-UUID` next to `NAME`, synced, and moved there by one rename. Correctness rests on
that rename alone. The lock `.NAME.lock` only saves work: of many processes one downloads and the others wait for it.
"""

import errno
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dolly_batch.system.file_lock import try_lock
from dolly_batch.system.process import boot_id

STALE_AFTER_S = 24 * 3600.0
_POLL_S = 0.1
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


@contextmanager
def turn_to_build(dest: Path, log: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other process builds `dest`, or until `dest` exists; then keep others waiting.

    On a file system without locks this does not wait, and `publish` drops the slower builder's copy.
    """
    dest.parent.mkdir(parents=True, exist_ok=True)
    lock = dest.parent / f".{dest.name}.lock"
    descriptor = _acquire(lock, dest, log)
    try:
        _remove_leftovers(dest, locked=descriptor is not None)
        yield
    finally:
        if descriptor is not None:
            lock.unlink(missing_ok=True)  # before it is released: see try_lock
            os.close(descriptor)


@contextmanager
def partial_folder(dest: Path) -> Iterator[Path]:
    """An empty hidden folder next to `dest` to build in; deleted at the end if it still exists."""
    partial = dest.parent / f".{dest.name}.partial-{_kernel()}-{uuid.uuid4().hex[:12]}"
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def publish(partial: Path, dest: Path) -> bool:
    """Sync `partial` to disk and move it to `dest`; False when another process put a folder there first."""
    for path in [*partial.rglob("*"), partial]:
        _sync(path)
    try:
        partial.rename(dest)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    _sync(dest.parent)
    return True


def is_filled(dest: Path) -> bool:
    """Whether there is anything at `dest` but an empty folder."""
    return dest.exists() and not (dest.is_dir() and not any(dest.iterdir()))


def _acquire(lock: Path, dest: Path, log: Callable[[str], None]) -> int | None:
    """The lock's descriptor; None where there are no locks, or once another process has built `dest`."""
    is_first = True
    while True:
        try:
            descriptor = try_lock(lock)
        except OSError:
            return None
        if descriptor is not None:
            return descriptor
        if is_filled(dest):
            return None
        if is_first:
            log(f"another process is building {dest}; waiting for it")
        is_first = False
        time.sleep(_POLL_S)


def _remove_leftovers(dest: Path, locked: bool) -> None:
    """Delete what killed processes left: at once if they ran under this kernel and we hold the lock, else by age."""
    of_this_boot = f".{dest.name}.partial-{_kernel()}-"
    for partial in [path for path in dest.parent.iterdir() if path.name.startswith(f".{dest.name}.partial-")]:
        dead = locked and bool(_kernel()) and partial.name.startswith(of_this_boot)
        if dead or _newest_change(partial) < time.time() - STALE_AFTER_S:
            shutil.rmtree(partial, ignore_errors=True)


def _newest_change(folder: Path) -> float:
    changes = []
    for path in [folder, *folder.rglob("*")]:
        try:
            changes.append(path.lstat().st_mtime)
        except FileNotFoundError:
            changes.append(time.time())  # another process works in it
    return max(changes)


def _kernel() -> str:
    """A short name of the running kernel: within it file locks are reliable. Empty where it cannot be determined."""
    return boot_id().replace("-", "")[:12]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # mounted object stores cannot sync a folder
            raise
    finally:
        os.close(descriptor)
