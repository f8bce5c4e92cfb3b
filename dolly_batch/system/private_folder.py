"""Folders that nobody but this user reads or writes: for sockets, and for what is run as it lies there."""

import os
import stat
from pathlib import Path

from dolly_batch.errors import EngineError


def make_private(folder: Path) -> None:
    """Creates a folder of mode 0700, or checks that the existing one is. Raises EngineError if it is not."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise EngineError(f"{folder}: cannot be made a folder for engine hosts: {error}") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise EngineError(
            f"{folder}: found {stat.filemode(status.st_mode)} of user {status.st_uid}, expected a folder drwx------ of "
            f"user {os.geteuid()}: remove it, or set TMPDIR to another folder"
        )
