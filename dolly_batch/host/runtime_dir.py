"""The files in the folder of one engine host.

s                  the Unix socket, while a host listens
lock               held by whoever connects, starts a host, or ends an idle one
host.json         HostRecord of the latest host started here
failure-N.json     why host number N ended, when it could say so
turn-N.json        whose turn it is, or was when host number N ended; absent when its rows are anybody's
host.log           the output of all hosts of this place: never a prompt or an answer
"""

import contextlib
import json
import os
import shutil
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from dolly_batch.file_lock import locked
from dolly_batch.process import ProcessFailure, ProcessId
from dolly_batch.records import EngineSpec

_LOG_TAIL_BYTES = 4_000
# Another host's folder may be swept away at any moment, or have been written by another version.
_UNREADABLE = (OSError, ValueError, TypeError, KeyError)


@dataclass(frozen=True, slots=True)
class HostRecord:
    """What a host is told when it starts. `incarnation` counts the hosts started at this address, from 1."""

    spec: EngineSpec
    owner: ProcessId
    device: str | None
    engine_id: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class RuntimeDir:
    """Reads and writes the files of one place. Record and socket are written under the lock, the rest by the host."""

    path: Path

    @property
    def socket(self) -> Path:
        """Where the host listens."""
        return self.path / "s"

    @property
    def log(self) -> Path:
        """Where the host's output goes."""
        return self.path / "host.log"

    def locked(self, timeout_s: float) -> AbstractContextManager[None]:
        """Holds the place's lock. Raises TimeoutError."""
        return locked(self.path / "lock", timeout_s)

    def read_record(self) -> HostRecord | None:
        """The latest host's record, or None before the first."""
        try:
            found = json.loads((self.path / "host.json").read_bytes())
        except FileNotFoundError:
            return None
        found["spec"] = EngineSpec(**found["spec"])
        found["owner"] = ProcessId(**found["owner"])
        return HostRecord(**found)

    def write_record(self, record: HostRecord) -> None:
        """Replaces the record, whole or not at all."""
        self._write("host.json", asdict(record))

    def read_failure(self, incarnation: int) -> ProcessFailure | None:
        """Why that host ended, or None when it left no word."""
        try:
            return ProcessFailure(**json.loads((self.path / f"failure-{incarnation}.json").read_bytes()))
        except FileNotFoundError:
            return None

    def write_failure(self, incarnation: int, failure: ProcessFailure) -> None:
        """Leaves word for the clients, before the host ends."""
        self._write(f"failure-{incarnation}.json", asdict(failure))

    def read_turn(self, incarnation: int) -> str | None:
        """Whose rows alone that host has, or had when it ended; None when it was nobody's turn."""
        try:
            turn: str = json.loads((self.path / f"turn-{incarnation}.json").read_bytes())
        except FileNotFoundError:
            return None
        return turn

    def write_turn(self, incarnation: int, turn: str | None) -> None:
        """Tells whose turn begins; None ends it."""
        if turn is None:
            (self.path / f"turn-{incarnation}.json").unlink(missing_ok=True)
        else:
            self._write(f"turn-{incarnation}.json", turn)

    def log_tail(self) -> str:
        """The last lines of the log, at most 4,000 bytes."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - _LOG_TAIL_BYTES))
                return log.read().decode("utf-8", errors="replace").strip()
        except FileNotFoundError:
            return ""

    def has_newer_neighbour(self) -> bool:
        """Whether a host of another spec was started later for the same owner and device, and still listens."""
        own = self.read_record()
        if own is None:
            return False
        started_at = self._started_at()
        for path in self.path.parent.glob(f"{own.owner.pid}-*/s"):
            neighbour = RuntimeDir(path.parent)
            with contextlib.suppress(*_UNREADABLE):
                other = neighbour.read_record()
                same = other is not None and (other.owner, other.device) == (own.owner, own.device)
                if same and neighbour._started_at() > started_at:
                    return True
        return False

    def _started_at(self) -> int:
        return (self.path / "host.json").stat().st_mtime_ns

    def _write(self, name: str, content: object) -> None:
        draft = self.path / f"{name}.{os.getpid()}"
        draft.write_text(json.dumps(content), encoding="ascii")
        draft.replace(self.path / name)


def sweep(root: Path, keep: Path) -> None:
    """Removes the folders under `root`, other than `keep`, whose owner is gone and whose lock is free.

    A folder without a record, or with one that cannot be read, is left alone, and so is one of another pid namespace.
    """
    for path in root.iterdir():
        if path == keep or not path.is_dir() or path.is_symlink():
            continue
        runtime_dir = RuntimeDir(path)
        with contextlib.suppress(*_UNREADABLE):
            record = runtime_dir.read_record()
            if record is None or not record.owner.is_visible() or record.owner.is_alive():
                continue
            with runtime_dir.locked(timeout_s=0):
                shutil.rmtree(path, ignore_errors=True)
