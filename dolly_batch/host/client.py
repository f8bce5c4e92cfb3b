"""The way from a Spark task to its executor's engine host: `EngineClient.connect`, then `answer`."""

import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice
from types import TracebackType
from typing import Any, Self

from dolly_batch import errors
from dolly_batch.errors import DollyBatchError, EngineError, Refused
from dolly_batch.host.folder import HostFolder
from dolly_batch.host.launch import join_or_start
from dolly_batch.host.place import HostPlace
from dolly_batch.host.wire import (
    PROTOCOL,
    FrameReader,
    PromptRow,
    Row,
    RowWriter,
    ScoreRow,
    answer_from_json,
    pack,
    spec_to_json,
)
from dolly_batch.records import Completion, EngineSpec, Scores

# Under the lock a host is started, which takes a Python's start and no load; so nobody holds it for long.
_LOCK_TIMEOUT_S = 300
_ROWS_PER_SEND = 32
_GREETING_SLACK_S = 30.0


class EngineClient:
    """One task's connection to the engine host of its executor. Not to be shared between threads.

    `engine_id` names the executor's place and device and stays when the host is started anew; `load_number` counts
    the hosts started there, so the sum over engines of the largest `load_number` is the number of model loads.
    `host_pid` is the host's process, `window` the number of rows that may be outstanding.
    """

    engine_id: str
    load_number: int
    host_pid: int
    window: int

    def __init__(self, folder: HostFolder, sock: socket.socket, load_number: int) -> None:
        self.load_number = load_number
        self._folder = folder
        self._sock = sock
        self._frames = FrameReader(sock)
        self._numbers = count()
        self._writer = RowWriter()

    @classmethod
    def connect(cls, spec: EngineSpec, place: HostPlace) -> Self:
        """Joins the host at this place, starting one if none runs, and waits until its model is loaded.

        Raises ModelError when the engine refuses the model, EngineError when no host can be started, when it ends, or
        when it has not loaded within `spec.load_timeout_s`.
        """
        folder = HostFolder(place.make_folder(spec))
        deadline = time.monotonic() + spec.load_timeout_s
        client = cls._join(folder, spec, place)
        if not client._greet(spec, deadline):
            fault = client._fault()
            client.close()
            if folder.read_failure(client.load_number) is not None or time.monotonic() >= deadline:
                raise fault
            # It ended without a word, perhaps while serving others before this task came: one more is started.
            client = cls._join(folder, spec, place)
            if not client._greet(spec, deadline):
                client.close()
                raise client._fault() from fault
        return client

    @classmethod
    def _join(cls, folder: HostFolder, spec: EngineSpec, place: HostPlace) -> Self:
        try:
            with folder.locked(_LOCK_TIMEOUT_S):
                sock, record = join_or_start(folder, spec, place)
        except TimeoutError as error:
            raise EngineError(f"{folder.path}: another process is starting an engine host there: {error}") from error
        return cls(folder, sock, record.load_number)

    def _greet(self, spec: EngineSpec, deadline: float) -> bool:
        """Waits for the host's welcome; false when the host ended instead. Raises EngineError at the deadline."""
        # A little longer than the host gives itself, so that the reason is in its log.
        self._sock.settimeout(max(0, deadline - time.monotonic()) + _GREETING_SLACK_S)
        try:
            self._sock.sendall(pack({"protocol": PROTOCOL, "spec": spec_to_json(spec)}))
            answers = self._frames.read()
        except ConnectionError:
            return False
        except TimeoutError as error:
            self.close()
            raise EngineError(
                f"the engine host has not loaded {spec.model_folder} within {spec.load_timeout_s:g} s; {self._log()}"
            ) from error
        if not answers:
            return False
        welcome = answers[0]
        if "refused" in welcome:
            self.close()
            raise EngineError(f"the engine host at {self._folder.path} serves others: {welcome['refused']}")
        self.engine_id, self.load_number = welcome["engine_id"], welcome["load_number"]
        self.host_pid, self.window = welcome["host_pid"], welcome["window"]
        self._sock.settimeout(None)
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the host, which drops what it has not answered. Closing twice is no error."""
        self._sock.close()

    def generate(self, rows: Iterable[PromptRow]) -> Iterator[Completion]:
        """Answers rows: one completion for each, in any order, as they end. See `answer`."""
        answers = self.answer(_taking(rows))
        return (answer for answer in answers if isinstance(answer, Completion))

    def score(self, rows: Iterable[ScoreRow]) -> Iterator[Scores]:
        """Scores rows: one answer for each, in any order, as they end. See `answer`."""
        answers = self.answer(_taking(rows))
        return (answer for answer in answers if isinstance(answer, Scores))

    def answer(self, take: Callable[[int], Sequence[Row]]) -> Iterator[Completion | Scores]:
        """Answers the rows that `take(n)` gives, at most n at a time: one answer for each, in any order, as they end.

        Rows are taken as they are needed, with at most `window` outstanding. `take` may give nothing now and more
        after further answers; the end is when it gives nothing and nothing is outstanding. A row's own fault comes as
        the `failure` of its answer. An error raised by `take` passes through. After that, or when the iterator is
        closed before its end, the connection is closed. Raises EngineError when the host ends.
        """
        if self._sock.fileno() < 0:
            raise EngineError("this connection to the engine host is closed: connect again")
        outstanding: dict[int, str] = {}
        finished = False
        try:
            self._fill(take, outstanding)
            while outstanding:
                for message in self._receive(outstanding):
                    yield answer_from_json(message, outstanding.pop(message[0]))
                    self._fill(take, outstanding)
            finished = True
        finally:
            if not finished:
                self.close()

    def _fill(self, take: Callable[[int], Sequence[Row]], outstanding: dict[int, str]) -> None:
        """Sends rows, `_ROWS_PER_SEND` at a time, as long as the window has room for so many."""
        while len(outstanding) + _ROWS_PER_SEND <= self.window:
            rows = take(_ROWS_PER_SEND)
            if not rows:
                return
            numbers = list(islice(self._numbers, len(rows)))
            outstanding.update(zip(numbers, (row.key for row in rows), strict=True))
            messages = [self._writer.write(*numbered) for numbered in zip(numbers, rows, strict=True)]
            try:
                self._sock.sendall(b"".join(pack(message) for message in messages))
            except OSError as error:
                raise self._fault(len(outstanding)) from error

    def _receive(self, outstanding: dict[int, str]) -> list[Any]:
        messages = self._frames.read()
        if not messages:
            raise self._fault(len(outstanding))
        return messages

    def _fault(self, num_outstanding: int = 0) -> DollyBatchError:
        """Why the host ended: in its own words if it left any, else the end of its log."""
        failure = self._folder.read_failure(self.load_number)
        if failure is None:
            reason = "without a word"
        elif isinstance(kind := getattr(errors, failure.error, None), type) and issubclass(kind, Refused):
            return kind(failure.message)
        else:
            reason = f"by {failure.error}: {failure.message}"
        return EngineError(
            f"the engine host (load {self.load_number}) ended {reason}, with {num_outstanding} rows of this task "
            f"unanswered; {self._log()}"
        )

    def _log(self) -> str:
        return f"the end of its log {self._folder.log}:\n{self._folder.log_tail()}"


def _taking(rows: Iterable[Row]) -> Callable[[int], Sequence[Row]]:
    source = iter(rows)
    return lambda num_rows: list(islice(source, num_rows))
