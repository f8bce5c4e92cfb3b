"""The directory of one engine host.

s                    the Unix socket, while a host listens
lock                 held by a client that connects or starts a host, and by a host that ends because it is idle
host.json            HostRecord of the latest host started here
failure-N.json       why host number N ended, if it could report that
quarantine-N.json    the batch that is alone in the engine of host number N, or was when it crashed; else absent
host.log             the output of all hosts started here: never a prompt or an answer
"""

import contextlib
import json
import os
import shutil
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from dolly_batch.records import EngineSpec
from dolly_batch.system.file_lock import locked
from dolly_batch.system.process import ProcessFailure, ProcessId

_LOG_TAIL_BYTES = 4_000
# Another host's directory may be deleted at any moment, or have been written by another version.
_UNREADABLE = (OSError, ValueError, TypeError, KeyError)


@dataclass(frozen=True, slots=True)
class HostRecord:
    """What a host needs to start. `incarnation` counts the hosts started at its address, from 1."""

    spec: EngineSpec
    owner: ProcessId
    device: str | None
    engine_id: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class RuntimeDir:
    """Reads and writes the files of one host. Clients write record and socket, under the lock; the host the rest."""

    path: Path

    @property
    def socket(self) -> Path:
        """The Unix socket on which the host listens."""
        return self.path / "s"

    @property
    def log(self) -> Path:
        """The file of the host's output."""
        return self.path / "host.log"

    def locked(self, timeout_s: float) -> AbstractContextManager[None]:
        """Holds the directory's lock. Raises TimeoutError."""
        return locked(self.path / "lock", timeout_s)

    def read_record(self) -> HostRecord | None:
        """The latest host's record, None before the first host."""
        try:
            record = json.loads((self.path / "host.json").read_bytes())
        except FileNotFoundError:
            return None
        record["spec"] = EngineSpec(**record["spec"])
        record["owner"] = ProcessId(**record["owner"])
        return HostRecord(**record)

    def write_record(self, record: HostRecord) -> None:
        """Replaces the record atomically."""
        self._write("host.json", asdict(record))

    def read_failure(self, incarnation: int) -> ProcessFailure | None:
        """Why that host ended, None if it has not reported it."""
        try:
            return ProcessFailure(**json.loads((self.path / f"failure-{incarnation}.json").read_bytes()))
        except FileNotFoundError:
            return None

    def write_failure(self, incarnation: int, failure: ProcessFailure) -> None:
        """Tells clients why this host is about to end."""
        self._write(f"failure-{incarnation}.json", asdict(failure))

    def read_quarantine(self, incarnation: int) -> str | None:
        """The batch that is alone in that host's engine, or was when it crashed; None if there is none."""
        try:
            quarantine: str = json.loads((self.path / f"quarantine-{incarnation}.json").read_bytes())
        except FileNotFoundError:
            return None
        return quarantine

    def write_quarantine(self, incarnation: int, quarantine: str | None) -> None:
        """Records which batch is alone in the engine from now on, None for no batch."""
        if quarantine is None:
            (self.path / f"quarantine-{incarnation}.json").unlink(missing_ok=True)
        else:
            self._write(f"quarantine-{incarnation}.json", quarantine)

    def log_tail(self) -> str:
        """The end of the log, at most 4,000 bytes."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, os.fstat(log.fileno()).st_size - _LOG_TAIL_BYTES))
                return log.read().decode("utf-8", errors="replace").strip()
        except FileNotFoundError:
            return ""

    def has_newer_neighbour(self) -> bool:
        """Whether a host of another spec was started later for the same owner and device, and still listens."""
        record = self.read_record()
        if record is None:
            return False
        started_at = self._started_at()
        for path in self.path.parent.glob(f"{record.owner.pid}-*/s"):
            neighbour = RuntimeDir(path.parent)
            with contextlib.suppress(*_UNREADABLE):
                other = neighbour.read_record()
                same = other is not None and (other.owner, other.device) == (record.owner, record.device)
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
    """Deletes the directories under `root`, other than `keep`, whose owner has ended and whose lock is free.

    It keeps a directory without a readable record, and one of another pid namespace.
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
