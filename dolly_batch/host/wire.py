"""What client and host say to each other: JSON messages, each behind its length in four bytes.

    client                              host
    hello    protocol, spec        ->
                                   <-   welcome   engine_id, incarnation, host_pid, window   (once the model is loaded)
    [number, kind, row, common]    ->
    ["turn", name, rows]           ->                                                        (rows as above)
                                   <-   [number, kind, answer ...]                           (as they end, in any order)

The rows of a turn have the engine to themselves. `number` is the client's own count of its rows; their keys stay with
the client. `common` is what rows usually share (the labels, the parameters, the grammar): it is sent when it differs
from the last row of the same kind, else null.
JSON is written in ASCII, so every string that Python can hold passes, lone surrogates and NUL too.
"""

import json
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import groupby
from typing import Any

from dolly_batch.errors import EngineError
from dolly_batch.records import (
    Completion,
    EngineSpec,
    Failure,
    GenerationParams,
    PartialAnswer,
    PromptRow,
    Row,
    ScoreRow,
    Scores,
)

PROTOCOL = 3
MAX_FRAME_BYTES = 1 << 28
_RECEIVE_BYTES = 1 << 18
_LENGTH = struct.Struct(">I")
_to_json = json.JSONEncoder(separators=(",", ":")).encode


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


class RowWriter:
    """Rows as messages, in the order in which they are sent over one connection."""

    def __init__(self) -> None:
        self._last: dict[str, list[Any]] = {}

    def write(self, number: int, row: Row) -> list[Any]:
        """A row under the client's own number, without its key."""
        if isinstance(row, PromptRow):
            p = row.params
            params = [p.max_new_tokens, p.do_sample, p.temperature, p.top_p, p.top_k, p.repetition_penalty]
            partial = None if row.partial is None else [row.partial.text, row.partial.num_tokens]
            own = [row.instruction, row.context, row.seed, partial]
            return [number, "generate", own, self._new("generate", [params, row.format, row.grammar])]
        common = [row.continuations, row.with_end, row.format]
        return [number, "score", [row.instruction, row.context], self._new("score", common)]

    def _new(self, kind: str, common: list[Any]) -> list[Any] | None:
        if self._last.get(kind) == common:
            return None
        self._last[kind] = common
        return common


class RowReader:
    """The rows of a `RowWriter`'s messages, read in the order in which they were written."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[Any, ...]] = {}

    def read(self, message: list[Any], key: str) -> Row:
        """The row, under a key of the reader's choice. Rows with the same continuations share one tuple of them."""
        _, kind, own, common = message
        if kind == "generate":
            if common is not None:
                params, prompt_format, grammar = common
                self._last[kind] = (GenerationParams(*params), prompt_format, grammar)
            instruction, context, seed, partial = own
            partial = None if partial is None else PartialAnswer(*partial)
            params, prompt_format, grammar = self._last[kind]
            return PromptRow(key, instruction, context, params, seed, prompt_format, grammar, partial)
        if common is not None:
            texts, with_end, prompt_format = common
            self._last[kind] = (tuple(texts), with_end, prompt_format)
        return ScoreRow(key, *own, *self._last[kind])


def turn_to_json(name: str, rows: list[list[Any]]) -> list[Any]:
    """Rows, as messages, that are to have the engine to themselves."""
    return ["turn", name, rows]


def in_turns(messages: Iterable[list[Any]]) -> Iterator[tuple[str | None, list[list[Any]]]]:
    """The rows of messages, still as messages, with the name of their turn; None for rows that need none."""
    for is_turn, found in groupby(messages, key=lambda message: message[0] == "turn"):
        if is_turn:
            yield from ((name, rows) for _, name, rows in found)
        else:
            yield None, list(found)


def failed(row: Row, failure: Failure) -> Completion | Scores:
    """The answer to a row that got none."""
    if isinstance(row, PromptRow):
        return Completion(row.key, "", (), None, 0, failure)
    return Scores(row.key, (), failure)


def answer_to_json(number: int, answer: Completion | Scores) -> list[Any]:
    """An answer under the number of its row, without its key."""
    a = answer
    failure = None if a.failure is None else [a.failure.status, a.failure.message]
    if isinstance(a, Scores):
        return [number, "scores", a.log_probs, a.num_prompt_tokens, failure]
    return [
        *(number, "completion", a.text, a.token_ids, a.finish_reason, a.num_prompt_tokens),
        *(a.num_partial_tokens, failure),
    ]


def answer_from_json(message: list[Any], key: str) -> Completion | Scores:
    """The answer of `answer_to_json`, under the key of its row."""
    _, kind, *rest, told = message
    failure = None if told is None else Failure(*told)
    if kind == "scores":
        log_probs, num_prompt_tokens = rest
        return Scores(key, tuple(log_probs), failure, num_prompt_tokens)
    text, token_ids, finish_reason, num_prompt_tokens, num_partial_tokens = rest
    return Completion(key, text, tuple(token_ids), finish_reason, num_prompt_tokens, failure, num_partial_tokens)
