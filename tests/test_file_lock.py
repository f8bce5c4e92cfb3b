"""A lock has one holder, and a killed or deleted one does not keep it."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dolly_batch.system.file_lock import locked, try_lock

HOLD = """
import sys, time
from pathlib import Path
from dolly_batch.system.file_lock import locked
with locked(Path(sys.argv[1]), 0):
    print("held", flush=True)
    time.sleep(600)
"""


def test_it_has_one_holder_and_the_kernel_releases_it(tmp_path: Path):
    path = tmp_path / "lock"
    with locked(path, 0), pytest.raises(TimeoutError, match=r"within 0\.1 s"), locked(path, 0.1):
        pass
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with holder, holder.stdout:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(TimeoutError), locked(path, 0):
            pass
        holder.kill()
        holder.wait()
    with locked(path, 5):
        pass


def test_a_lock_on_a_deleted_file_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its holder deletes the file between another's opening it and locking it."""
    path, flock = tmp_path / "lock", fcntl.flock

    def deleted_meanwhile(descriptor: int, operation: int) -> None:
        path.unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", deleted_meanwhile)
    assert try_lock(path) is None
    monkeypatch.undo()
    descriptor = try_lock(path)
    assert descriptor is not None
    os.close(descriptor)
