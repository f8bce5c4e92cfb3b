"""One client's connection, as the host sees it: a thread that reads rows, a thread that sends completions."""

import contextlib
import logging
import socket
import threading
from queue import SimpleQueue
from typing import Any

from dolly_batch.errors import EngineError
from dolly_batch.host.wire import (
    PROTOCOL,
    FrameReader,
    PromptRow,
    completion_to_json,
    pack,
    row_from_json,
    spec_to_json,
)
from dolly_batch.records import Completion, EngineSpec

log = logging.getLogger("dolly_batch.host")

Arrival = tuple["Connection", list[PromptRow]]


class Connection:
    """Rows in, completions out, each at its own pace: a client that reads slowly holds up nobody else.

    The key of a row is `connection:number`, unique in the host. `closed` turns true as soon as the client is gone.
    What waits to be sent is bounded by the client, which has at most `window` rows outstanding.
    """

    def __init__(self, number: int, sock: socket.socket, spec: EngineSpec, inbox: "SimpleQueue[Arrival]") -> None:
        self.number = number
        self.closed = False
        self._sock = sock
        self._spec = spec
        self._inbox = inbox
        self._outbox: SimpleQueue[list[Completion] | None] = SimpleQueue()
        self._welcome: dict[str, Any] = {}
        self._loaded = threading.Event()

    def start(self) -> None:
        """Begins to read."""
        threading.Thread(target=self._read, name=f"reader-{self.number}", daemon=True).start()

    def welcome(self, message: dict[str, Any]) -> None:
        """The engine is loaded: the client may be greeted with this message."""
        self._welcome = message
        self._loaded.set()

    def send(self, completions: list[Completion]) -> None:
        """Queues completions of this client's rows; never blocks."""
        if not self.closed:
            self._outbox.put(completions)

    def _read(self) -> None:
        frames = FrameReader(self._sock)
        sender = threading.Thread(target=self._send, name=f"sender-{self.number}", daemon=True)
        sender.start()
        try:
            if self._greet(frames):
                while messages := frames.read():
                    rows = [row_from_json(message, f"{self.number}:{message[0]}") for message in messages]
                    self._inbox.put((self, rows))
        except (EngineError, OSError, TypeError, ValueError) as error:
            # No message: it may quote a row.
            log.warning("connection %d ended by %s", self.number, type(error).__name__)
        finally:
            self.closed = True
            self._outbox.put(None)
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            # Closed last: the sender may be writing, and the next connection would take the same descriptor.
            sender.join()
            self._sock.close()

    def _greet(self, frames: FrameReader) -> bool:
        """Whether the client is one of ours; if so it has its welcome. A client sends nothing else before that."""
        hello = frames.read()
        if not hello:
            return False
        expected = {"protocol": PROTOCOL, "spec": spec_to_json(self._spec)}
        if hello != [expected]:
            self._sock.sendall(pack({"refused": f"found a client of {hello[0]}, expected {expected}"}))
            return False
        self._loaded.wait()
        self._sock.sendall(pack(self._welcome))
        return True

    def _send(self) -> None:
        while (completions := self._outbox.get()) is not None:
            frames = [pack(completion_to_json(_number(completion.key), completion)) for completion in completions]
            try:
                self._sock.sendall(b"".join(frames))
            except OSError:
                return


def _number(key: str) -> int:
    """The client's number of the row that has this key in the host."""
    return int(key.rpartition(":")[2])
