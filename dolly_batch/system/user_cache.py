"""Where this package keeps what it fetched once: resolved jars, a Java launcher, `smollm2`, compiled kernels."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path


def user_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """This user's cache folder for this package, which need not exist."""
    home = environ.get("HOME") or os.path.expanduser("~")
    return Path(environ.get("XDG_CACHE_HOME") or Path(home, ".cache"), "dolly-batch")


def private_cache(name: str) -> Path | None:
    """A folder of the cache for what is run as it lies there, such as machine code; it is made where it is missing.

    None where it cannot be made, and where others than this user may write: what they leave there is not to be run.
    """
    folder = user_cache() / name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError:
        return None
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    return folder if is_ours else None
