"""A model on the node's own disk, copied there once a node from the folder that all nodes share.

A thousand hosts that start at once would read the model a thousand times, and twice each, from one place. With a folder
of the node's own, one of its hosts copies, hashing what it reads, the others wait, and all load from there.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from dolly_batch.errors import ModelError
from dolly_batch.models.folder import MANIFEST
from dolly_batch.records import EngineSpec
from dolly_batch.system.file_lock import locked

log = logging.getLogger("dolly_batch.engine")

TRIES = 5
MAX_SPREAD_S = 30.0
_BLOCK = 8 << 20


def with_local_copy(spec: EngineSpec) -> EngineSpec:
    """The spec with the model's folder below `local_dir`, filled where it is not there yet.

    The spec as it is where it names no such folder, where the model has no manifest to check a copy by, or where the
    disk cannot take it: the log then says why. Raises ModelError for a file that is not what the manifest says.
    """
    if spec.local_dir is None:
        return spec
    folder = Path(spec.model_folder)
    try:
        final = _place(folder, spec.local_dir)
        final.parent.mkdir(parents=True, exist_ok=True)
        with locked(final.with_name(f".{final.name}.lock"), spec.load_timeout_s / 2):
            if not final.is_dir():
                _fill(folder, json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"], final)
    except (OSError, ValueError, KeyError) as error:
        log.warning("%s is loaded from where it is; it cannot be copied to %s: %s", folder, spec.local_dir, error)
        return spec
    return replace(spec, model_folder=str(final))


def discard_local_copy(spec: EngineSpec) -> None:
    """Delete the copy that `with_local_copy` has made."""
    with contextlib.suppress(OSError):
        shutil.rmtree(_place(Path(spec.model_folder), str(spec.local_dir)))


def _place(folder: Path, local_dir: str) -> Path:
    identity = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:16]
    return Path(local_dir) / f"{folder.name}-{identity}"


def _fill(folder: Path, files: dict[str, Any], final: Path) -> None:
    """Copy the files and rename: the folder is complete if it exists. The caller holds the lock."""
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a host that was killed
    num_bytes = sum(entry["size"] for entry in files.values())
    time.sleep(random.uniform(0, min(MAX_SPREAD_S, num_bytes / 1e9)))  # noqa: S311  # not all nodes at once
    partial.mkdir()
    try:
        for name, entry in files.items():
            _copy(folder / name, partial / name, entry["sha256"])
        shutil.copyfile(folder / MANIFEST, partial / MANIFEST)
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _copy(source: Path, target: Path, sha256: str) -> None:
    """Copy a file, again after a fault of reading it, with longer and longer pauses."""
    for attempt in range(TRIES):
        try:
            found = _copy_hashed(source, target)
        except OSError as error:
            if error.errno == errno.ENOSPC or attempt == TRIES - 1:
                raise
        else:
            if found == sha256:
                return
            if attempt == TRIES - 1:
                raise ModelError(
                    f"{source}: sha256 is {found}, expected {sha256} from {MANIFEST}; stage the model again"
                )
        time.sleep(random.uniform(0, 2**attempt))  # noqa: S311


def _copy_hashed(source: Path, target: Path) -> str:
    digest = hashlib.sha256()
    with source.open("rb") as read, target.open("wb") as written:
        while block := read.read(_BLOCK):
            digest.update(block)
            written.write(block)
        written.flush()
        with contextlib.suppress(OSError):
            os.fsync(written.fileno())
    return digest.hexdigest()
