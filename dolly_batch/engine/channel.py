"""What an engine pool and its processes say to each other: JSON lines over a socket, standard library only.

pool                                     process
{"request": [...]}  ...             ->
{"score": [prompt, continuations]}  ->
{"stats": true}                     ->
                                    <-   {"ready": pid}                     once, when the model is loaded
                                    <-   {"beat": true}                     while it works
                                    <-   {"completions": [[...], ...]}      as they end
                                    <-   {"scores": [...]}, {"stats": {...}}
                                    <-   {"error": class, "message": text}  then it ends
"""

import json
import select
import socket
from dataclasses import asdict
from typing import Any

from dolly_batch.records import Completion, Failure, GenerationParams, Request

_RECEIVE_BYTES = 1 << 18
_to_json = json.JSONEncoder(separators=(",", ":")).encode


class Channel:
    """One end of a connection. Messages are JSON objects, in order."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = b""
        self.is_closed = False

    def fileno(self) -> int:
        """The socket's descriptor, for `select`."""
        return self._sock.fileno()

    def send(self, *messages: dict[str, Any]) -> None:
        """Send messages. Raises OSError when the other side is gone."""
        self._sock.sendall("".join(_to_json(message) + "\n" for message in messages).encode("ascii"))

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


def request_to_json(request: Request) -> list[Any]:
    """A request as a JSON array."""
    return [request.key, request.prompt_ids, asdict(request.params), request.seed]


def request_from_json(message: list[Any]) -> Request:
    """The request of `request_to_json`."""
    key, prompt_ids, params, seed = message
    return Request(key, tuple(prompt_ids), GenerationParams(**params), seed)


def completion_to_json(completion: Completion) -> list[Any]:
    """A completion as a JSON array."""
    c = completion
    failure = None if c.failure is None else [c.failure.status, c.failure.message]
    return [c.key, c.text, c.token_ids, c.finish_reason, c.num_prompt_tokens, failure]


def completion_from_json(message: list[Any]) -> Completion:
    """The completion of `completion_to_json`."""
    key, text, token_ids, finish_reason, num_prompt_tokens, failure = message
    failed = None if failure is None else Failure(*failure)
    return Completion(key, text, tuple(token_ids), finish_reason, num_prompt_tokens, failed)
