"""Where this package keeps what it fetched once: resolved jars, a Java launcher, `smollm2`."""

import os
from collections.abc import Mapping
from pathlib import Path


def user_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """This user's cache folder for this package, which need not exist."""
    home = environ.get("HOME") or os.path.expanduser("~")
    return Path(environ.get("XDG_CACHE_HOME") or Path(home, ".cache"), "dolly-batch")
