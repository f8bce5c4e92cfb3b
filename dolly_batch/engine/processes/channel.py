"""What an engine pool and its processes say to each other: JSON lines over a socket, standard library only.

pool                                     process
{"request": [...]}  ...             ->
{"score": [prompt, continuations]}  ->                                      asked for by itself, answered at once
{"stats": true}                     ->
                                    <-   {"ready": pid}                     once, when the model is loaded
                                    <-   {"beat": true}                     while it works
                                    <-   {"answers": [[...], ...]}          to requests, as they end
                                    <-   {"scores": [...]}, {"stats": {...}}
                                    <-   {"error": class, "message": text}  then it ends
"""

import contextlib
import json
import select
import socket
from dataclasses import asdict
from typing import Any

from dolly_batch.records import Completion, Failure, GenerationParams, Request, ScoreRequest, Scores

_RECEIVE_BYTES = 1 << 18
_SEND_BYTES = 1 << 16
_to_json = json.JSONEncoder(separators=(",", ":")).encode


class Channel:
    """One end of a connection. Messages are JSON objects, in order."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = b""
        self._unsent = bytearray()
        self.is_closed = False

    @property
    def has_unsent(self) -> bool:
        """Whether something that was queued waits for `flush`."""
        return bool(self._unsent)

    def fileno(self) -> int:
        """The socket's descriptor, for `select`."""
        return self._sock.fileno()

    def send(self, *messages: dict[str, Any]) -> None:
        """Send messages, however long the other side takes. Raises OSError when it is gone."""
        self._sock.sendall(_encode(messages))

    def queue(self, *messages: dict[str, Any]) -> None:
        """Send messages as far as the other side has room; the rest waits for `flush`. Raises as `send`, never blocks.

        Of two sides one at least has to send like this: both blocked in `send`, neither would receive.
        """
        self._unsent += _encode(messages)
        self.flush()

    def flush(self) -> None:
        """Send what waits, as far as the other side has room. Raises OSError when it is gone."""
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                del self._unsent[: self._sock.send(self._unsent[:_SEND_BYTES], socket.MSG_DONTWAIT)]

    def receive(self, timeout_s: float | None = None) -> list[dict[str, Any]]:
        """The messages at hand; waits for the first, for `timeout_s` at most. Sets `is_closed` at the end."""
        messages: list[dict[str, Any]] = []
        while not messages and select.select([self._sock], [], [], timeout_s)[0]:
            try:
                data = self._sock.recv(_RECEIVE_BYTES)
            except ConnectionError:
                data = b""
            if not data:
                self.is_closed = True
                break
            *lines, self._buffer = (self._buffer + data).split(b"\n")
            messages += [json.loads(line) for line in lines]
        return messages

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


def _encode(messages: tuple[dict[str, Any], ...]) -> bytes:
    return "".join(_to_json(message) + "\n" for message in messages).encode("ascii")


def request_to_json(request: Request | ScoreRequest) -> list[Any]:
    """A request as a JSON array, its kind first."""
    r = request
    if isinstance(r, ScoreRequest):
        return ["score", r.key, r.prompt_ids, r.continuations]
    return ["generate", r.key, r.prompt_ids, asdict(r.params), r.seed, r.grammar, r.partial_ids]


def request_from_json(message: list[Any]) -> Request | ScoreRequest:
    """The request of `request_to_json`."""
    kind, key, prompt_ids, *rest = message
    if kind == "score":
        return ScoreRequest(key, tuple(prompt_ids), tuple(tuple(continuation) for continuation in rest[0]))
    params, seed, grammar, partial_ids = rest
    return Request(key, tuple(prompt_ids), GenerationParams(**params), seed, grammar, tuple(partial_ids))


def answer_to_json(answer: Completion | Scores) -> list[Any]:
    """An answer as a JSON array, its kind first."""
    a = answer
    failure = None if a.failure is None else [a.failure.status, a.failure.message]
    if isinstance(a, Scores):
        return ["scores", a.key, failure, a.num_prompt_tokens, a.log_probs]
    own = [a.text, a.token_ids, a.finish_reason, a.num_partial_tokens]
    return ["completion", a.key, failure, a.num_prompt_tokens, *own]


def answer_from_json(message: list[Any]) -> Completion | Scores:
    """The answer of `answer_to_json`."""
    kind, key, told, num_prompt_tokens, *rest = message
    failure = None if told is None else Failure(*told)
    if kind == "scores":
        return Scores(key, tuple(rest[0]), failure, num_prompt_tokens)
    text, token_ids, finish_reason, num_partial_tokens = rest
    return Completion(key, text, tuple(token_ids), finish_reason, num_prompt_tokens, failure, num_partial_tokens)
