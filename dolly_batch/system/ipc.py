"""Messages between processes over a socket: tasks and their engine host, and an engine and its processes.

A message is JSON in ASCII, preceded by its length in four bytes; so every string that Python can hold passes, lone
surrogates and NUL included. A record (`records.py`) is a message `[key, kind, values, shared]`. `shared` are the values
that neighbours usually have in common (parameters, grammar, labels): they are sent when they differ from those of the
last record of the same kind, else null.

    task                                host (host/client, host/connection)
    {"protocol": N, "spec": {...}}  ->
                                    <-  {"engine_id", "incarnation", "host_pid", "window"}   once the model is loaded,
                                    <-  {"refused": reason}                                  or this, and the end
    PromptRow, ScoreRow             ->
    {"quarantine": name,
     "rows": [...]}                 ->
                                    <-  Completion, Scores                                   in any order

    engine (processes/pool)             process (processes/worker)
    {"spec": {...}}                 ->                                       to the first, which forks the others
                                    <-  {"ready": pid}                       once the model is loaded
    {"request": record}             ->
    {"score": [ids, continuations]} ->                                       answered at once
    {"stats": true}                 ->
                                    <-  {"beat": true}                       while it works
                                    <-  {"answers": [record, ...]}           to requests, as they end
                                    <-  {"scores": [...]}, {"stats": {...}}
                                    <-  {"error": {...}}                     its ProcessFailure, and the end
"""

import contextlib
import json
import select
import socket
import struct
from dataclasses import astuple, fields
from typing import Any, Generic, TypeVar

from dolly_batch.errors import EngineError
from dolly_batch.records import (
    Completion,
    Failure,
    GenerationParams,
    PartialAnswer,
    PromptRow,
    Request,
    ScoreRequest,
    ScoreRow,
    Scores,
)

PROTOCOL = 4
MAX_FRAME_BYTES = 1 << 28
_RECEIVE_BYTES = 1 << 18
_SEND_BYTES = 1 << 16
_LENGTH = struct.Struct(">I")
_to_json = json.JSONEncoder(separators=(",", ":"), default=astuple).encode  # astuple: records within records

Record = TypeVar("Record", bound=PromptRow | ScoreRow | Request | ScoreRequest | Completion | Scores)

# The fields that neighbours usually have in common; the others but the key are sent with each record.
_SHARED: dict[type[Any], tuple[str, ...]] = {
    PromptRow: ("params", "format", "grammar"),
    ScoreRow: ("continuations", "with_end", "format"),
    Request: ("params", "grammar"),
    ScoreRequest: ("continuations",),
    Completion: (),
    Scores: (),
}
_OWN = {
    kind: tuple(field.name for field in fields(kind) if field.name not in ("key", *shared))
    for kind, shared in _SHARED.items()
}
_KINDS = {kind.__name__: kind for kind in _SHARED}
_NESTED: dict[str, type[Any]] = {"params": GenerationParams, "partial": PartialAnswer, "failure": Failure}


def pack(*messages: object) -> bytes:
    """Messages as frames. Raises EngineError when one is longer than a frame may be."""
    frames = []
    for message in messages:
        body = _to_json(message).encode("ascii")
        if len(body) > MAX_FRAME_BYTES:
            raise EngineError(f"a message of {len(body):,} bytes: at most {MAX_FRAME_BYTES:,} can be sent to an engine")
        frames += [_LENGTH.pack(len(body)), body]
    return b"".join(frames)


class Channel:
    """One end of a connection. One thread may send while another receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._readable = select.poll()  # not select.select, which ends at descriptor 1,024
        self._readable.register(sock, select.POLLIN)
        self._received = bytearray()
        self._unsent = bytearray()
        self.is_closed = False

    @property
    def has_unsent(self) -> bool:
        """Whether something that was queued waits for `flush`."""
        return bool(self._unsent)

    def fileno(self) -> int:
        """The socket's descriptor, -1 after `close`."""
        return self._sock.fileno()

    def send(self, *messages: object) -> None:
        """Send messages, however long the other side takes. Raises OSError when it is gone."""
        self._sock.sendall(pack(*messages))

    def queue(self, *messages: object) -> None:
        """Send messages as far as the other side has room; the rest waits for `flush`. Raises as `send`, never blocks.

        Of two sides one at least has to send like this: both blocked in `send`, neither would receive.
        """
        self._unsent += pack(*messages)
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the other side has room. Raises OSError when it is gone."""
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent[:_SEND_BYTES], socket.MSG_DONTWAIT)]

    def receive(self, timeout_s: float | None = None) -> list[Any]:
        """All messages at hand; waits for the first, for `timeout_s` at most.

        Empty at the time-out, and when the other side has closed, which sets `is_closed`. A message that was cut off is
        dropped. Raises EngineError on a frame too long, ValueError on one that is no JSON.
        """
        messages: list[Any] = []
        while not messages and self._readable.poll(None if timeout_s is None else 1_000 * timeout_s):
            try:
                chunk = self._sock.recv(_RECEIVE_BYTES)
            except ConnectionError:
                chunk = b""
            if not chunk:
                self.is_closed = True
                break
            self._received += chunk
            messages = self._take()
        return messages

    def _take(self) -> list[Any]:
        """The whole messages among what was received, taken out of it."""
        messages = []
        start = 0
        while len(self._received) >= start + _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received, start)
            if length > MAX_FRAME_BYTES:
                raise EngineError(f"found a frame of {length:,} bytes, expected at most {MAX_FRAME_BYTES:,}")
            body = start + _LENGTH.size
            if len(self._received) < body + length:
                break
            messages.append(json.loads(self._received[body : body + length]))
            start = body + length
        del self._received[:start]
        return messages

    def close(self) -> None:
        """Close the socket. Closing twice is no error."""
        self._sock.close()


class RecordWriter:
    """Records as messages, in the order in which they are sent over one connection."""

    def __init__(self) -> None:
        self._last: dict[type[Any], list[Any]] = {}

    def write(self, record: Record, key: object = None) -> list[Any]:
        """A record, under its own key unless the connection has another for it."""
        kind = type(record)
        shared = [getattr(record, name) for name in _SHARED[kind]]
        is_new = shared != self._last.get(kind)
        self._last[kind] = shared
        values = [getattr(record, name) for name in _OWN[kind]]
        return [record.key if key is None else key, kind.__name__, values, shared if is_new else None]


class RecordReader(Generic[Record]):
    """The records of a `RecordWriter`'s messages, read in the order in which they were written."""

    def __init__(self) -> None:
        self._last: dict[type[Any], dict[str, Any]] = {}

    def read(self, message: list[Any], key: str | None = None) -> Record:
        """A record, under the key in the message unless another is given. Neighbours share one copy of `shared`."""
        sent_key, name, values, shared = message
        kind = _KINDS[name]
        if shared is not None:
            self._last[kind] = _fields(_SHARED[kind], shared)
        record: Record = kind(key=sent_key if key is None else key, **_fields(_OWN[kind], values), **self._last[kind])
        return record


def _fields(names: tuple[str, ...], values: list[Any]) -> dict[str, Any]:
    return {name: _field(name, value) for name, value in zip(names, values, strict=True)}


def _field(name: str, value: Any) -> Any:
    """A field's value as the record has it: JSON knows neither records nor tuples."""
    if name in _NESTED and value is not None:
        return _NESTED[name](*value)
    if isinstance(value, list):
        return tuple(map(tuple, value)) if value and isinstance(value[0], list) else tuple(value)
    return value
