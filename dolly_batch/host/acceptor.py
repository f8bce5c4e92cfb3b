"""Lets clients in, and ends the host when its owner is gone or nobody has come for long."""

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

from dolly_batch.host.connection import Arrival, Connection
from dolly_batch.host.runtime_dir import HostRecord, RuntimeDir

log = logging.getLogger("dolly_batch.host")

_TICK_S = 1.0
# Two models seldom fit one GPU: a host without clients makes room for a newer host of the same owner and device.
_MAKE_ROOM_S = 3.0
_MAX_LOG_BYTES = 4 << 20


class Doorkeeper:
    """One thread that accepts connections and looks around every second.

    Idleness is judged by the same thread that accepts and under the lock that clients connect under, so a host never
    ends between a client's connecting and its first row.
    """

    def __init__(
        self, runtime_dir: RuntimeDir, record: HostRecord, listener: socket.socket, inbox: "SimpleQueue[Arrival]"
    ) -> None:
        self._runtime_dir = runtime_dir
        self._record = record
        self._listener = listener
        self._door = select.poll()
        self._door.register(listener, select.POLLIN)
        self._inbox = inbox
        self._welcome: dict[str, Any] | None = None
        self._connections: list[Connection] = []
        self._num_accepted = 0
        self._busy_at = time.monotonic()
        self._changing = threading.Lock()

    def start(self) -> None:
        """Begins to accept."""
        threading.Thread(target=self._run, name="doorkeeper", daemon=True).start()

    def open(self, welcome: dict[str, Any]) -> None:
        """The engine is loaded: greets the clients that wait and all that come."""
        with self._changing:
            self._welcome = welcome
            for connection in self._connections:
                connection.welcome(welcome)

    def _run(self) -> None:
        look_at = time.monotonic() + _TICK_S
        while True:
            if self._someone_waits(max(0.0, look_at - time.monotonic())):
                self._accept()
            if time.monotonic() >= look_at:
                self._look_around()
                look_at = time.monotonic() + _TICK_S

    def _someone_waits(self, timeout_s: float) -> bool:
        return bool(self._door.poll(timeout_s * 1_000))

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        self._num_accepted += 1
        connection = Connection(self._num_accepted, sock, self._record.spec, self._inbox)
        connection.start()
        with self._changing:
            self._connections.append(connection)
            if self._welcome is not None:
                connection.welcome(self._welcome)

    def _look_around(self) -> None:
        if not self._record.owner.is_alive():
            log.info("process %d, the owner, is gone", self._record.owner.pid)
            self._runtime_dir.socket.unlink(missing_ok=True)
            shutil.rmtree(self._runtime_dir.path, ignore_errors=True)
            os._exit(0)
        with self._changing:
            self._connections = [connection for connection in self._connections if not connection.closed]
            if self._connections or self._welcome is None:
                self._busy_at = time.monotonic()
            elif self._is_idle_enough(time.monotonic() - self._busy_at):
                self._leave_idle()
        if os.fstat(sys.stderr.fileno()).st_size > _MAX_LOG_BYTES:
            os.ftruncate(sys.stderr.fileno(), 0)

    def _is_idle_enough(self, idle_s: float) -> bool:
        """Whether the host may go: idle for its time-out, or for less when the next job's host needs the memory."""
        timeout_s = self._record.spec.idle_timeout_s
        return idle_s >= timeout_s or (idle_s >= _MAKE_ROOM_S and self._runtime_dir.has_newer_neighbour())

    def _leave_idle(self) -> None:
        """Ends the host unless someone is just connecting; if so, or if the lock is held, the next look decides."""
        with contextlib.suppress(TimeoutError), self._runtime_dir.locked(timeout_s=0):
            if not self._someone_waits(0):
                log.info("no client for %.1f s", time.monotonic() - self._busy_at)
                self._runtime_dir.socket.unlink(missing_ok=True)
                os._exit(0)
