"""The host's end of a client's connection: a thread that reads rows, and a thread that sends answers."""

import contextlib
import logging
import socket
import threading
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import groupby
from queue import SimpleQueue
from typing import Any, NamedTuple

from dolly_batch.errors import EngineError
from dolly_batch.records import Completion, EngineSpec, Row, Scores
from dolly_batch.system.ipc import PROTOCOL, Channel, RecordReader, RecordWriter

log = logging.getLogger("dolly_batch.host")


class IncomingRows(NamedTuple):
    """Rows of one client; `quarantine` is the client's name of the batch if they must be alone in the engine."""

    connection: "Connection"
    rows: list[Row]
    quarantine: str | None


class Connection:
    """Reads rows and sends answers independently, so that a client that reads slowly does not delay the others.

    The key of a row is `connection:number`, unique in the host. `closed` becomes true as soon as the client is gone.
    The answers that wait to be sent are bounded by the client, which has at most `window` rows outstanding.
    """

    def __init__(self, number: int, sock: socket.socket, spec: EngineSpec, inbox: "SimpleQueue[IncomingRows]") -> None:
        self.number = number
        self.closed = False
        self._sock = sock
        self._channel = Channel(sock)
        self._spec = spec
        self._inbox = inbox
        self._outbox: SimpleQueue[list[Completion | Scores] | None] = SimpleQueue()
        self._ready_message: dict[str, Any] = {}
        self._is_ready = threading.Event()

    def start(self) -> None:
        """Begins to read."""
        threading.Thread(target=self._read, name=f"reader-{self.number}", daemon=True).start()

    def set_ready(self, message: dict[str, Any]) -> None:
        """The engine is loaded: the client gets this ready message."""
        self._ready_message = message
        self._is_ready.set()

    def send(self, answers: list[Completion | Scores]) -> None:
        """Queues answers to this client's rows; never blocks."""
        if not self.closed:
            self._outbox.put(answers)

    def _read(self) -> None:
        reader: RecordReader[Row] = RecordReader()
        sender = threading.Thread(target=self._send, name=f"sender-{self.number}", daemon=True)
        sender.start()
        try:
            if self._greet():
                while messages := self._channel.receive():
                    for quarantine, batch in _batches(messages):
                        rows = [reader.read(message, f"{self.number}:{message[0]}") for message in batch]
                        self._inbox.put(IncomingRows(self, rows, quarantine))
        except (EngineError, LookupError, OSError, TypeError, ValueError) as error:
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

    def _greet(self) -> bool:
        """Reads the hello and sends the ready message, which a client awaits; false for a client of another version."""
        hello = self._channel.receive()
        if not hello:
            return False
        expected = {"protocol": PROTOCOL, "spec": asdict(self._spec)}
        if hello != [expected]:
            self._channel.send({"refused": f"found a client of {hello[0]}, expected {expected}"})
            return False
        self._is_ready.wait()
        self._channel.send(self._ready_message)
        return True

    def _send(self) -> None:
        writer = RecordWriter()
        while (answers := self._outbox.get()) is not None:
            try:
                self._channel.send(*(writer.write(answer, _number(answer.key)) for answer in answers))
            except OSError:
                return


def _batches(messages: Iterable[Any]) -> Iterator[tuple[str | None, list[list[Any]]]]:
    """Rows, still as messages, with the name of their quarantine batch; None for all other rows."""
    for kind, group in groupby(messages, key=type):
        if kind is dict:
            yield from ((message["quarantine"], message["rows"]) for message in group)
        else:
            yield None, list(group)


def _number(key: str) -> int:
    """The client's number of the row that has this key in the host."""
    return int(key.rpartition(":")[2])
