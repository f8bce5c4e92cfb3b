"""Retries after a crash of the engine host, and isolates the row that causes the crashes.

A host may crash by a fault of the machine, or be killed: then the next host gets its rows. But a row may also crash the
host each time it is sent, by a fault in native code or because it needs more memory than there is. To find it:

1. A row that was in flight in `MAX_CRASHES_IN_COMPANY` crashes is a suspect.
2. Suspects are bisected in quarantine batches. While such a batch is in the engine, no other row is, not even one of
   another task, so a crash clears all rows but the batch's. The batch is then split, in the end down to one row.
3. A row that crashes `MAX_CRASHES_ALONE` hosts while it is alone in the engine gets the status `model_error`.

The first batch on each host is the canary, a harmless row: if that crashes the host, the engine is to blame and no row.
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
# A crash costs a load of the model, a batch the time of its longest row: so more parts than two.
BATCHES_PER_SPLIT = 8
# It asks for several tokens, so that decoding is tried as well as prefill.
CANARY = PromptRow("canary", "Hello.", None, GenerationParams(max_new_tokens=8, do_sample=False))


class RetryingClient:
    """An `EngineClient` that survives crashes of its hosts. `engine_id` and `incarnation` are the current host's.

    The constructor connects; see `EngineClient.connect`. Keys of rows must differ within one call of `answer`.
    """

    def __init__(self, spec: EngineSpec, address: HostAddress) -> None:
        self._spec = spec
        self._address = address
        self._client = EngineClient.connect(spec, address)

    @property
    def engine_id(self) -> str:
        """The host's address and device, the same for all incarnations."""
        return self._client.engine_id

    @property
    def incarnation(self) -> int:
        """The number of the current host, from 1."""
        return self._client.incarnation

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnects; the host drops the rows that it has not answered. Closing twice is no error."""
        self._client.close()

    def answer(self, take: Callable[[int], Sequence[Row]]) -> Iterator[Completion | Scores]:
        """As `EngineClient.answer`: one answer for each row, a `model_error` for a row that crashes its hosts.

        Raises EngineError when no host can be started, or when the engine crashes on the canary.
        """
        unanswered: deque[Row] = deque()
        crashes: Counter[str] = Counter()

        def take_unanswered(num_rows: int) -> Sequence[Row]:
            rows = [unanswered.popleft() for _ in range(min(num_rows, len(unanswered)))]
            return [*rows, *take(num_rows - len(rows))] if len(rows) < num_rows else rows

        suspects: Sequence[Row] = ()
        while True:
            yield from self._answer_suspects(suspects, crashes)
            try:
                yield from self._client.answer(take_unanswered)
            except HostCrashed as crash:
                crashes.update(row.key for row in crash.in_flight)
                suspects = [row for row in crash.unanswered if crashes[row.key] >= MAX_CRASHES_IN_COMPANY]
                unanswered.extend(row for row in crash.unanswered if crashes[row.key] < MAX_CRASHES_IN_COMPANY)
                self._connect_after(crash)
            else:
                return

    def _answer_suspects(self, suspects: Sequence[Row], crashes: Counter[str]) -> Iterator[Completion | Scores]:
        """Answers rows, some of which may crash the host. `crashes` counts by a row's key those with it in flight."""
        alone: Counter[str] = Counter()
        batches = _split(suspects)
        while batches:
            try:
                for answer in self._client.answer_quarantined([[CANARY], *batches]):
                    if answer.key != CANARY.key:
                        yield answer
            except HostCrashed as crash:
                if CANARY in crash.in_flight:
                    raise EngineError(f"the engine cannot answer the simplest request: {crash}") from crash
                fault = crash
            else:
                return
            crashes.update(row.key for row in fault.in_flight)
            batches = _narrowed(batches, fault)
            if len(fault.in_flight) == 1:
                (row,) = fault.in_flight
                alone[row.key] += 1
                if alone[row.key] == MAX_CRASHES_ALONE:
                    batches.remove([row])
                    yield failed(row, _blame(crashes[row.key], fault.reason))
            self._connect_after(fault)

    def _connect_after(self, crash: HostCrashed) -> None:
        """Connects to the next host; the executor's log says why."""
        message = "the engine host (load %d) ended %s; %d rows are asked again"
        log.warning(message, self.incarnation, crash.reason, len(crash.unanswered))
        self._client = EngineClient.connect(self._spec, self._address)


def _split(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows in at most `BATCHES_PER_SPLIT` batches of similar size."""
    size = -(-len(rows) // BATCHES_PER_SPLIT)
    return [list(rows[start : start + size]) for start in range(0, len(rows), size or 1)]


def _narrowed(batches: Sequence[Sequence[Row]], crash: HostCrashed) -> list[list[Row]]:
    """The batches without the rows answered by now, and the one that was in flight split."""
    unanswered, in_flight = {row.key for row in crash.unanswered}, {row.key for row in crash.in_flight}
    narrowed = []
    for batch in batches:
        rows = [row for row in batch if row.key in unanswered]
        narrowed += _split(rows) if rows and rows[0].key in in_flight else [rows] if rows else []
    return narrowed


def _blame(num_crashes: int, reason: str) -> Failure:
    return Failure(
        "model_error",
        f"the engine ended {num_crashes} times while it had this row, the last {MAX_CRASHES_ALONE} times with no other "
        f"row in work: {reason}",
    )
