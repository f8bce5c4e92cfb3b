"""Accepts clients, and ends the host when its owner has ended or when it has been idle for too long."""

import contextlib
import logging
import os
import select
import shutil
import socket
import sys
import threading
import time
from queue import SimpleQueue
from typing import Any

from dolly_batch.host.connection import Connection, IncomingRows
from dolly_batch.host.runtime_dir import HostRecord, RuntimeDir

log = logging.getLogger("dolly_batch.host")

_TICK_S = 1.0
# Two models seldom fit one GPU: a host without clients makes room for a newer host of the same owner and device.
_MAKE_ROOM_S = 3.0
_MAX_LOG_BYTES = 4 << 20


class Acceptor:
    """One thread that accepts connections and checks every second whether the host is still needed.

    The thread that accepts also decides whether the host is idle, under the lock that clients hold while they connect.
    So a host never ends between a client's connection and its first row.
    """

    def __init__(
        self, runtime_dir: RuntimeDir, record: HostRecord, listener: socket.socket, inbox: "SimpleQueue[IncomingRows]"
    ) -> None:
        self._runtime_dir = runtime_dir
        self._record = record
        self._listener = listener
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._inbox = inbox
        self._ready_message: dict[str, Any] | None = None
        self._connections: list[Connection] = []
        self._num_accepted = 0
        self._busy_at = time.monotonic()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Begins to accept."""
        threading.Thread(target=self._run, name="acceptor", daemon=True).start()

    def set_ready(self, message: dict[str, Any]) -> None:
        """The engine is loaded: sends the ready message to the clients that wait and to all later ones."""
        with self._lock:
            self._ready_message = message
            for connection in self._connections:
                connection.set_ready(message)

    def _run(self) -> None:
        check_at = time.monotonic() + _TICK_S
        while True:
            if self._is_client_waiting(max(0.0, check_at - time.monotonic())):
                self._accept()
            if time.monotonic() >= check_at:
                self._check_liveness()
                check_at = time.monotonic() + _TICK_S

    def _is_client_waiting(self, timeout_s: float) -> bool:
        return bool(self._poll.poll(timeout_s * 1_000))

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        self._num_accepted += 1
        connection = Connection(self._num_accepted, sock, self._record.spec, self._inbox)
        connection.start()
        with self._lock:
            self._connections.append(connection)
            if self._ready_message is not None:
                connection.set_ready(self._ready_message)

    def _check_liveness(self) -> None:
        if not self._record.owner.is_alive():
            log.info("the owner, process %d, has ended", self._record.owner.pid)
            self._runtime_dir.socket.unlink(missing_ok=True)
            shutil.rmtree(self._runtime_dir.path, ignore_errors=True)
            os._exit(0)
        with self._lock:
            self._connections = [connection for connection in self._connections if not connection.closed]
            if self._connections or self._ready_message is None:
                self._busy_at = time.monotonic()
            elif self._is_idle_enough(time.monotonic() - self._busy_at):
                self._exit_if_idle()
        if os.fstat(sys.stderr.fileno()).st_size > _MAX_LOG_BYTES:
            os.ftruncate(sys.stderr.fileno(), 0)

    def _is_idle_enough(self, idle_s: float) -> bool:
        """Whether the host may end: at its idle time-out, or earlier when the next job's host needs the memory."""
        timeout_s = self._record.spec.idle_timeout_s
        return idle_s >= timeout_s or (idle_s >= _MAKE_ROOM_S and self._runtime_dir.has_newer_neighbour())

    def _exit_if_idle(self) -> None:
        """Ends the host unless a client is connecting; then, or while the lock is held, the next check decides."""
        with contextlib.suppress(TimeoutError), self._runtime_dir.locked(timeout_s=0):
            if not self._is_client_waiting(0):
                log.info("no client for %.1f s", time.monotonic() - self._busy_at)
                self._runtime_dir.socket.unlink(missing_ok=True)
                os._exit(0)
