"""Asks again when the engine host ends, and finds the row that ends it.

A host may end by a fault of the machine, or be killed; what it had is then asked of the next one. It may also end by
what one row does to it (a fault in native code, more memory than there is), each time the row is asked. So a row that
was in work when two hosts ended is a suspect. Suspects are asked in turns, in which nothing else is in the engine, not
even another task's rows: a turn that ends the host is split, until it is one row. A row that ends two hosts by itself
fails, and the others go on.

The first turn on each host is a harmless question, so that a row is blamed only by an engine that works.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

from dolly_batch.errors import EngineError
from dolly_batch.host.address import HostAddress
from dolly_batch.host.client import EngineClient, HostCrashed
from dolly_batch.host.encoding import failed
from dolly_batch.records import Completion, EngineSpec, Failure, GenerationParams, PromptRow, Row, Scores

log = logging.getLogger("dolly_batch.host")

MAX_CRASHES_IN_COMPANY = 2
MAX_CRASHES_ALONE = 2
# Each host that ends costs a load of the model, each turn the time of its longest row: so more than halves.
TURNS_PER_SPLIT = 8
# Of several tokens, so that decoding is tried too, and not the prompt alone.
CANARY = PromptRow("canary", "Hello.", None, GenerationParams(max_new_tokens=8, do_sample=False))


class RetryingClient:
    """An `EngineClient` that outlives its hosts. `engine_id` and `incarnation` are those of the present one.

    Making it connects; see `EngineClient.connect`. Keys of rows must differ within one call of `answer`.
    """

    def __init__(self, spec: EngineSpec, address: HostAddress) -> None:
        self._spec = spec
        self._address = address
        self._client = EngineClient.connect(spec, address)

    @property
    def engine_id(self) -> str:
        """The executor's place and device, whichever host is there."""
        return self._client.engine_id

    @property
    def incarnation(self) -> int:
        """The number of the present host, from 1."""
        return self._client.incarnation

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the host, which drops what it has not answered. Closing twice is no error."""
        self._client.close()

    def answer(self, take: Callable[[int], Sequence[Row]]) -> Iterator[Completion | Scores]:
        """As `EngineClient.answer`: one answer for each row. A row that ends its hosts is answered by `model_error`.

        Raises EngineError when no host can be had, or when the engine ends whatever it is asked.
        """
        again: deque[Row] = deque()
        crashes: Counter[str] = Counter()

        def take_again(num_rows: int) -> Sequence[Row]:
            rows = [again.popleft() for _ in range(min(num_rows, len(again)))]
            return [*rows, *take(num_rows - len(rows))] if len(rows) < num_rows else rows

        suspects: Sequence[Row] = ()
        while True:
            yield from self._answer_in_turns(suspects, crashes)
            try:
                yield from self._client.answer(take_again)
            except HostCrashed as crash:
                crashes.update(row.key for row in crash.in_flight)
                suspects = [row for row in crash.unanswered if crashes[row.key] >= MAX_CRASHES_IN_COMPANY]
                again.extend(row for row in crash.unanswered if crashes[row.key] < MAX_CRASHES_IN_COMPANY)
                self._connect_after(crash)
            else:
                return

    def _answer_in_turns(self, suspects: Sequence[Row], crashes: Counter[str]) -> Iterator[Completion | Scores]:
        """Answers rows, one of which may end the host. `ends` counts the hosts that ended with a row, by its key."""
        alone: Counter[str] = Counter()
        turns = _split(suspects)
        while turns:
            try:
                for answer in self._client.answer_in_turns([[CANARY], *turns]):
                    if answer.key != CANARY.key:
                        yield answer
            except HostCrashed as crash:
                if CANARY in crash.in_flight:
                    raise EngineError(f"the engine cannot answer the simplest question: {crash}") from crash
                fault = crash
            else:
                return
            crashes.update(row.key for row in fault.in_flight)
            turns = _narrowed(turns, fault)
            if len(fault.in_flight) == 1:
                (row,) = fault.in_flight
                alone[row.key] += 1
                if alone[row.key] == MAX_CRASHES_ALONE:
                    turns.remove([row])
                    yield failed(row, _blame(crashes[row.key], fault.reason))
            self._connect_after(fault)

    def _connect_after(self, crash: HostCrashed) -> None:
        """Joins the next host; the log of the executor says why."""
        message = "the engine host (load %d) ended %s; %d rows are asked again"
        log.warning(message, self.incarnation, crash.reason, len(crash.unanswered))
        self._client = EngineClient.connect(self._spec, self._address)


def _split(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows in at most `TURNS_PER_SPLIT` turns of like size."""
    size = -(-len(rows) // TURNS_PER_SPLIT)
    return [list(rows[start : start + size]) for start in range(0, len(rows), size or 1)]


def _narrowed(turns: Sequence[Sequence[Row]], crash: HostCrashed) -> list[list[Row]]:
    """What is left of the turns, the one that was in work split."""
    left, in_flight = {row.key for row in crash.unanswered}, {row.key for row in crash.in_flight}
    narrowed = []
    for turn in turns:
        rows = [row for row in turn if row.key in left]
        narrowed += _split(rows) if rows and rows[0].key in in_flight else [rows] if rows else []
    return narrowed


def _blame(num_crashes: int, reason: str) -> Failure:
    return Failure(
        "model_error",
        f"the engine ended {num_crashes} times while it had this row, the last {MAX_CRASHES_ALONE} times with no other "
        f"row in work: {reason}",
    )
