"""Connects a Spark task to its executor's engine host: `EngineClient.connect`, then `answer`."""

import socket
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count, islice
from types import TracebackType
from typing import Any, Self

from dolly_batch.errors import DollyBatchError, EngineError
from dolly_batch.host.address import HostAddress
from dolly_batch.host.launch import join_or_start
from dolly_batch.host.runtime_dir import RuntimeDir
from dolly_batch.records import Completion, EngineSpec, PromptRow, Row, ScoreRow, Scores
from dolly_batch.system.ipc import PROTOCOL, Channel, RecordReader, RecordWriter

# A client that holds the lock starts at most a Python process, and does not wait until the model is loaded.
_LOCK_TIMEOUT_S = 300
_ROWS_PER_SEND = 32
_GREETING_SLACK_S = 30.0
# One more than the hosts that a single bad row may crash before it is quarantined: those serve other tasks' rows.
_MAX_SILENT_CRASHES = 3

Outstanding = dict[int, tuple[Row, str | None]]
"""By a row's number: the row, and the quarantine batch that it was sent in, if any."""


class HostCrashed(EngineError):
    """The engine host crashed before it had answered this task's rows, which `unanswered` holds.

    `in_flight` holds those that may have been in the engine at that moment. `reason` is what the host reported.
    """

    def __init__(self, message: str, reason: str, unanswered: Sequence[Row], in_flight: Sequence[Row]) -> None:
        super().__init__(message)
        self.reason = reason
        self.unanswered = unanswered
        self.in_flight = in_flight


class EngineClient:
    """One task's connection to the engine host of its executor. Not to be shared between threads.

    `engine_id` names the host's address and device, and stays when the host is restarted; `incarnation` counts the
    hosts started at that address, so the sum over engines of the largest `incarnation` is the number of model loads.
    `host_pid` is the host's process, `window` the number of rows that may be outstanding.
    """

    engine_id: str
    incarnation: int
    host_pid: int
    window: int

    def __init__(self, runtime_dir: RuntimeDir, sock: socket.socket, incarnation: int) -> None:
        self.incarnation = incarnation
        self._runtime_dir = runtime_dir
        self._channel = Channel(sock)
        self._numbers = count()
        self._writer = RecordWriter()
        self._reader: RecordReader[Completion | Scores] = RecordReader()

    @classmethod
    def connect(cls, spec: EngineSpec, address: HostAddress) -> Self:
        """Connects to the host at this address, starting one if none runs, and waits until its model is loaded.

        Raises ModelError when the engine refuses the model, EngineError when no host can be started, when it crashes,
        or when it has not loaded within `spec.load_timeout_s`.
        """
        runtime_dir = RuntimeDir(address.make_folder(spec))
        deadline = time.monotonic() + spec.load_timeout_s
        num_silent = 0
        while True:
            client = cls._join(runtime_dir, spec, address)
            if client._greet(spec, deadline):
                return client
            client.close()
            # A crash in quarantine, or without a report, is not due to this task, which has sent nothing yet.
            in_quarantine = runtime_dir.read_quarantine(client.incarnation) is not None
            reported = runtime_dir.read_failure(client.incarnation) is not None
            num_silent += not in_quarantine
            if (reported and not in_quarantine) or num_silent == _MAX_SILENT_CRASHES or time.monotonic() >= deadline:
                raise client._fault({})

    @classmethod
    def _join(cls, runtime_dir: RuntimeDir, spec: EngineSpec, address: HostAddress) -> Self:
        try:
            with runtime_dir.locked(_LOCK_TIMEOUT_S):
                sock, record = join_or_start(runtime_dir, spec, address)
        except TimeoutError as error:
            raise EngineError(
                f"{runtime_dir.path}: another process is starting an engine host there: {error}"
            ) from error
        return cls(runtime_dir, sock, record.incarnation)

    def _greet(self, spec: EngineSpec, deadline: float) -> bool:
        """Waits for the host's ready message; false when it crashed instead. Raises EngineError at the deadline."""
        # A little longer than the host gives itself, so that the reason is in its log.
        timeout_s = max(0, deadline - time.monotonic()) + _GREETING_SLACK_S
        try:
            self._channel.send({"protocol": PROTOCOL, "spec": asdict(spec)})
            answers = self._channel.receive(timeout_s)
        except ConnectionError:
            return False
        if self._channel.is_closed:
            return False
        if not answers:
            self.close()
            raise EngineError(
                f"the engine host has not loaded {spec.model_folder} within {spec.load_timeout_s:g} s; {self._log()}"
            )
        message = answers[0]
        if "refused" in message:
            self.close()
            raise EngineError(f"the engine host at {self._runtime_dir.path} serves others: {message['refused']}")
        self.engine_id, self.incarnation = message["engine_id"], message["incarnation"]
        self.host_pid, self.window = message["host_pid"], message["window"]
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnects; the host drops the rows that it has not answered. Closing twice is no error."""
        self._channel.close()

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
        closed before its end, the connection is closed. Raises HostCrashed.
        """
        outstanding: Outstanding = {}
        with self._left_open_when_done():
            self._fill(take, outstanding)
            while outstanding:
                for message in self._receive(outstanding):
                    yield self._reader.read(message, outstanding.pop(message[0])[0].key)
                    self._fill(take, outstanding)

    def answer_quarantined(self, batches: Sequence[Sequence[Row]]) -> Iterator[Completion | Scores]:
        """Answers batches of rows one after the other, each alone in the engine; at most `window` rows in all.

        While a batch is in the engine no other row is, of this task or any other. So when the host crashes, `in_flight`
        of HostCrashed holds the unanswered rows of that one batch. Otherwise as `answer`.
        """
        outstanding: Outstanding = {}
        name = uuid.uuid4().hex
        with self._left_open_when_done():
            messages = []
            for number, rows in enumerate(batches):
                quarantine = f"{name}/{number}"
                messages.append({"quarantine": quarantine, "rows": self._written(rows, quarantine, outstanding)})
            self._send(messages, outstanding)
            while outstanding:
                for message in self._receive(outstanding):
                    yield self._reader.read(message, outstanding.pop(message[0])[0].key)

    @contextmanager
    def _left_open_when_done(self) -> Iterator[None]:
        """Closes the connection unless the block comes to its end."""
        if self._channel.fileno() < 0:
            raise EngineError("this connection to the engine host is closed: connect again")
        finished = False
        try:
            yield
            finished = True
        finally:
            if not finished:
                self.close()

    def _fill(self, take: Callable[[int], Sequence[Row]], outstanding: Outstanding) -> None:
        """Sends rows, `_ROWS_PER_SEND` at a time, as long as the window has room for so many."""
        while len(outstanding) + _ROWS_PER_SEND <= self.window:
            rows = take(_ROWS_PER_SEND)
            if not rows:
                return
            self._send(self._written(rows, None, outstanding), outstanding)

    def _written(self, rows: Sequence[Row], quarantine: str | None, outstanding: Outstanding) -> list[list[Any]]:
        """The rows as messages; from here on they are outstanding."""
        numbers = list(islice(self._numbers, len(rows)))
        outstanding.update(zip(numbers, ((row, quarantine) for row in rows), strict=True))
        return [self._writer.write(row, number) for number, row in zip(numbers, rows, strict=True)]

    def _send(self, messages: Sequence[object], outstanding: Outstanding) -> None:
        try:
            self._channel.send(*messages)
        except OSError as error:
            raise self._fault(outstanding) from error

    def _receive(self, outstanding: Outstanding) -> list[Any]:
        messages = self._channel.receive()
        if not messages:
            raise self._fault(outstanding)
        return messages

    def _fault(self, outstanding: Outstanding) -> DollyBatchError:
        """Why the host ended: by its own report if there is one, else by the end of its log."""
        failure = self._runtime_dir.read_failure(self.incarnation)
        if failure is not None and (refusal := failure.refusal()) is not None:
            return refusal
        reason = "without a word" if failure is None else f"by {failure}"
        quarantine = self._runtime_dir.read_quarantine(self.incarnation)
        return HostCrashed(
            f"the engine host (load {self.incarnation}) ended {reason}, with {len(outstanding)} rows of this task "
            f"unanswered; {self._log()}",
            reason,
            unanswered=[row for row, _ in outstanding.values()],
            in_flight=[row for row, batch in outstanding.values() if batch == quarantine],
        )

    def _log(self) -> str:
        return f"the end of its log {self._runtime_dir.log}:\n{self._runtime_dir.log_tail()}"


def _taking(rows: Iterable[Row]) -> Callable[[int], Sequence[Row]]:
    source = iter(rows)
    return lambda num_rows: list(islice(source, num_rows))
