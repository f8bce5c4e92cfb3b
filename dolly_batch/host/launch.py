"""Starts an engine host: its socket, its environment, its process."""

import socket
import subprocess
import sys
from pathlib import Path

from dolly_batch.errors import EngineError
from dolly_batch.host.address import HostAddress
from dolly_batch.host.runtime_dir import HostRecord, RuntimeDir, sweep
from dolly_batch.records import EngineSpec
from dolly_batch.system.process import child_environment
from dolly_batch.system.user_cache import private_cache

_BACKLOG = 512
_START_TIMEOUT_S = 120


def join_or_start(runtime_dir: RuntimeDir, spec: EngineSpec, address: HostAddress) -> tuple[socket.socket, HostRecord]:
    """A connection to the host at this address, which is started if none listens. The caller holds the lock.

    The model need not be loaded yet: the host answers when it is. Raises EngineError when no process can be started.
    """
    record = runtime_dir.read_record()
    if record is not None and (sock := _connect(runtime_dir.socket)) is not None:
        return sock, record
    record = HostRecord(
        spec, address.owner, address.device, address.engine_id(spec), 1 if record is None else record.incarnation + 1
    )
    sweep(address.root, keep=runtime_dir.path)
    return _start(runtime_dir, record), record


def host_environment(record: HostRecord, folder: Path) -> dict[str, str]:
    """The host's environment: this process's, but only one GPU, and no access to the hub.

    `folder` is private to the user, and may be written to: Triton keeps its kernels there where the user's cache cannot
    be, as on images without a home.
    """
    environment = child_environment(record.spec.num_threads)
    environment["HF_HUB_OFFLINE"] = "1"
    # Threads that spin at a barrier take more from a busy JVM than they save.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if record.device is not None:
        kind, _, index = record.device.partition(":")
        environment["CUDA_VISIBLE_DEVICES"] = index if kind == "cuda" else ""
        # Spark's addresses are nvidia-smi's, which counts in this order; CUDA itself would put the fastest first.
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
        if kind == "cuda":
            environment.setdefault("TRITON_CACHE_DIR", str(private_cache("triton") or folder / "triton"))
            # Prompts take another size each step, and keys and values leave little beside them: blocks of fixed size
            # would soon have no room for the largest.
            if "PYTORCH_CUDA_ALLOC_CONF" not in environment:  # its name before torch 2.9
                environment.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    return environment


def _connect(path: Path) -> socket.socket | None:
    """A connection, None if no host listens: there is no socket, or one that a dead host left."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(str(path))
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        return None
    return sock


def _start(runtime_dir: RuntimeDir, record: HostRecord) -> socket.socket:
    """Starts the host and connects.

    The socket listens before there is a host: the connection waits in its queue until the host accepts it, and breaks
    if the host dies before that. So a client never has to poll.
    """
    runtime_dir.socket.unlink(missing_ok=True)
    runtime_dir.write_record(record)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime_dir.socket))
        listener.listen(_BACKLOG)
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(runtime_dir.socket))
        try:
            _launch(runtime_dir, record, listener.fileno())
        except EngineError:
            sock.close()
            raise
    return sock


def _launch(runtime_dir: RuntimeDir, record: HostRecord, listener: int) -> None:
    """Runs the server module, which detaches itself and then returns."""
    try:
        with runtime_dir.log.open("ab") as log:
            launcher = subprocess.run(
                [sys.executable, "-P", "-m", "dolly_batch.host.server", str(runtime_dir.path), str(listener)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=host_environment(record, runtime_dir.path),
                pass_fds=[listener],
                start_new_session=True,
                timeout=_START_TIMEOUT_S,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"the engine host could not be started by {sys.executable}: {error}") from error
    if launcher.returncode != 0:
        raise EngineError(
            f"the engine host could not be started by {sys.executable}, exit {launcher.returncode}; "
            f"the end of its log {runtime_dir.log}:\n{runtime_dir.log_tail()}"
        )
