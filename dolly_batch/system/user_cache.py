"""Where this package keeps what it fetched once: resolved jars, a Java launcher, `smollm2`, compiled kernels."""

import os
from collections.abc import Mapping
from pathlib import Path

from dolly_batch.errors import EngineError
from dolly_batch.system.private_folder import make_private


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
        make_private(folder)
    except EngineError:
        return None
    return folder
