"""What client and host say to each other: JSON messages, each behind its length in four bytes.

    client                              host
    hello    protocol, spec        ->
                                   <-   welcome   engine_id, load_number, host_pid, window   (once the model is loaded)
    [number, PromptRow]  ...       ->
                                   <-   [number, Completion]  ...                            (as they end, in any order)

`number` is the client's own count of its rows; their keys stay with the client. JSON is written in ASCII, so every
string that Python can hold passes, lone surrogates and NUL too.
"""

import json
import socket
import struct
from dataclasses import asdict, dataclass
from typing import Any

from dolly_batch.errors import EngineError
from dolly_batch.records import Completion, EngineSpec, Failure, GenerationParams

PROTOCOL = 2
MAX_FRAME_BYTES = 1 << 28
_RECEIVE_BYTES = 1 << 18
_LENGTH = struct.Struct(">I")
_to_json = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One row to be answered. `key` is opaque and comes back with the completion; `context` None means none."""

    key: str
    instruction: str
    context: str | None
    params: GenerationParams
    seed: int = 0


def pack(message: object) -> bytes:
    """One message as a frame. Raises EngineError when it is longer than a frame may be."""
    body = _to_json(message).encode("ascii")
    if len(body) > MAX_FRAME_BYTES:
        raise EngineError(
            f"a message of {len(body):,} bytes: at most {MAX_FRAME_BYTES:,} can be sent to the engine host"
        )
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Reads messages off a socket, all that have arrived at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()

    def read(self) -> list[Any]:
        """The whole messages at hand, at least one; an empty list once the other side is gone.

        Blocks for the first. Raises TimeoutError when the socket has a timeout, EngineError on a frame too long.
        """
        while True:
            if messages := self._take():
                return messages
            try:
                chunk = self._sock.recv(_RECEIVE_BYTES)
            except ConnectionError:
                return []
            if not chunk:
                return []
            self._buffer += chunk

    def _take(self) -> list[Any]:
        """The whole messages in the buffer, taken out of it."""
        messages = []
        start = 0
        while len(self._buffer) >= start + _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_FRAME_BYTES:
                raise EngineError(f"found a frame of {length:,} bytes, expected at most {MAX_FRAME_BYTES:,}")
            body = start + _LENGTH.size
            if len(self._buffer) < body + length:
                break
            messages.append(json.loads(self._buffer[body : body + length]))
            start = body + length
        del self._buffer[:start]
        return messages


def spec_to_json(spec: EngineSpec) -> dict[str, Any]:
    """An EngineSpec as a JSON object."""
    return asdict(spec)


def spec_from_json(message: dict[str, Any]) -> EngineSpec:
    """The EngineSpec of `spec_to_json`."""
    return EngineSpec(**message)


def row_to_json(number: int, row: PromptRow) -> list[Any]:
    """A row under the client's own number, without its key."""
    p = row.params
    params = [p.max_new_tokens, p.do_sample, p.temperature, p.top_p, p.top_k, p.repetition_penalty]
    return [number, row.instruction, row.context, params, row.seed]


def row_from_json(message: list[Any], key: str) -> PromptRow:
    """The row of `row_to_json`, under a key of the reader's choice."""
    _, instruction, context, params, seed = message
    return PromptRow(key, instruction, context, GenerationParams(*params), seed)


def completion_to_json(number: int, completion: Completion) -> list[Any]:
    """A completion under the number of its row, without its key."""
    c = completion
    failure = None if c.failure is None else [c.failure.status, c.failure.message]
    return [number, c.text, c.token_ids, c.finish_reason, c.num_prompt_tokens, failure]


def completion_from_json(message: list[Any], key: str) -> Completion:
    """The completion of `completion_to_json`, under the key of its row."""
    _, text, token_ids, finish_reason, num_prompt_tokens, failure = message
    return Completion(
        key, text, tuple(token_ids), finish_reason, num_prompt_tokens, None if failure is None else Failure(*failure)
    )
