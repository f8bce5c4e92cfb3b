"""Addresses of engine hosts: a private directory for each owner, device and EngineSpec."""

import hashlib
import json
import os
import socket
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import dolly_batch
from dolly_batch.errors import EngineError
from dolly_batch.records import EngineSpec
from dolly_batch.system.ipc import PROTOCOL
from dolly_batch.system.private_folder import make_private
from dolly_batch.system.process import ProcessId, parent_jvm
from dolly_batch.system.user_cache import user_cache

# The path of a Unix socket ends at 103 bytes on macOS, at 107 on Linux; the directory's name and the socket's take 21.
_MAX_ROOT_BYTES = 82


def default_root() -> Path:
    """The user's folder for engine hosts: in the temporary folder, or in another one.

    Another one where that one's path is too long, or where somebody else has taken the name: nobody is to keep a user
    from working on a machine that both share.
    """
    bases = (tempfile.gettempdir(), "/tmp", os.environ.get("XDG_RUNTIME_DIR"), user_cache())  # noqa: S108 - made private
    roots = [Path(base, f"dolly-batch-{os.geteuid()}") for base in bases if base]
    short = [root for root in roots if len(os.fsencode(root)) <= _MAX_ROOT_BYTES]
    return next((root for root in short if not _is_anothers(root)), short[0])


def _is_anothers(path: Path) -> bool:
    return os.path.lexists(path) and path.lstat().st_uid != os.geteuid()


@dataclass(frozen=True, slots=True)
class HostAddress:
    """The owner of a host, and its device.

    The host ends with its `owner`. `device` is `cuda:N` (N as the machine counts, or a GPU's UUID), `cpu`, or None for
    the engine's own choice. `root` holds the folders of all hosts of this user and must have a short path.
    """

    owner: ProcessId
    device: str | None = None
    root: Path = field(default_factory=default_root)

    @classmethod
    def of_this_executor(cls, device: str | None = None) -> "HostAddress":
        """The address for the executor whose Spark task this process runs. Raises EngineError outside of Spark."""
        return cls(parent_jvm(), device)

    def name(self, spec: EngineSpec) -> str:
        """The folder's name: the owner's pid, and a hash of everything in which hosts differ."""
        owner = self.owner
        identity = [owner.namespace, owner.started, self.device, asdict(spec), PROTOCOL, dolly_batch.__version__]
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode("ascii")).hexdigest()
        return f"{owner.pid}-{digest[:10]}"

    def engine_id(self, spec: EngineSpec) -> str:
        """Machine, directory and device in one name, the same for all hosts started at this address."""
        return f"{socket.gethostname()}/{self.name(spec)}/{self.device or 'auto'}"

    def make_folder(self, spec: EngineSpec) -> Path:
        """The host's directory, created if missing. Raises EngineError if other users could read or write in it."""
        if len(os.fsencode(self.root)) > _MAX_ROOT_BYTES:
            raise EngineError(
                f"the path {self.root} is too long to hold a Unix socket: found {len(os.fsencode(self.root))} bytes, "
                f"expected at most {_MAX_ROOT_BYTES}; set TMPDIR to a shorter one"
            )
        make_private(self.root)
        folder = self.root / self.name(spec)
        make_private(folder)
        return folder
