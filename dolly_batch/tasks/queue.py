"""Rows in flight: the one driver of runs, for the job's shards, the SQL functions and the tests."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from dolly_batch.records import Completion, Row, Scores
from dolly_batch.tasks.base import Task, TaskInput, TaskResult, TaskRun

Owner = TypeVar("Owner")


class Answers(Protocol):
    """What answers requests: the client of an engine host."""

    def answer(self, take: Callable[[int], Sequence[Row]]) -> Iterator[Completion | Scores]:
        """One result for each request that `take(n)` gives, in any order, until it gives none and all are answered."""


@dataclass(frozen=True, slots=True)
class QueuedRow(Generic[Owner]):
    """A row to be answered. `owner` is what the caller knows it by.

    Neighbours with an equal `shared_as`, other than None, are asked once and all get that one result.
    """

    owner: Owner
    task: Task
    input: TaskInput
    shared_as: Hashable | None = None


class RowQueue(Generic[Owner]):
    """Which requests to send next, and whose result a result is.

    Follow-up requests come before new rows. A row is compared with its predecessor alone: equal requests lie side by
    side in a shard. One that is read after its predecessor was answered is asked again.
    """

    def __init__(self, rows: Iterable[QueuedRow[Owner]]) -> None:
        self._rows = iter(rows)
        self._open: dict[str, tuple[TaskRun, list[Owner], str | None]] = {}  # with the system prompt
        self._waiting: deque[Row] = deque()
        self._num_rows = 0
        self._last: tuple[str, Hashable | None] = ("", None)

    def take(self, num_requests: int) -> list[Row]:
        """At most so many requests, none when every row has been asked. Their keys are `row number/call`."""
        while len(self._waiting) < num_requests and (row := next(self._rows, None)) is not None:
            self._start(row)
        return [self._waiting.popleft() for _ in range(min(num_requests, len(self._waiting)))]

    def results(self, result: Completion | Scores) -> Iterator[tuple[Owner, TaskResult]]:
        """The rows that this result of the engine ends, with their results; often none."""
        number, _, call = result.key.rpartition("/")
        if number not in self._open:
            return  # the row has failed meanwhile, by another of its requests
        run, owners, system = self._open[number]
        after = run.on_result(replace(result, key=call))
        if not isinstance(after, TaskResult):
            self._send(number, after, system)
            return
        del self._open[number]
        for owner in owners:
            yield owner, after

    def _start(self, row: QueuedRow[Owner]) -> None:
        number, shared_as = self._last
        if row.shared_as is not None and row.shared_as == shared_as and number in self._open:
            self._open[number][1].append(row.owner)
            return
        number = str(self._num_rows)
        self._num_rows += 1
        self._last = (number, row.shared_as)
        run = row.task.start(row.input)
        self._open[number] = (run, [row.owner], row.task.system)
        self._send(number, run.first_requests(), row.task.system)

    def _send(self, number: str, requests: Sequence[Row], system: str | None) -> None:
        self._waiting.extend(replace(request, key=f"{number}/{request.key}", system=system) for request in requests)


def answer_rows(client: Answers, rows: Iterable[QueuedRow[Owner]]) -> Iterator[tuple[Owner, TaskResult]]:
    """The result of each row, in the order in which they end."""
    queue = RowQueue(rows)
    for result in client.answer(queue.take):
        yield from queue.results(result)


def warm_up(client: Answers, task: Task) -> Task:
    """The task with the results of what it asks once, before any row. Raises EngineError when it cannot go on."""
    requests = [replace(request, system=task.system) for request in task.warm_up_requests()]
    if not requests:
        return task
    order = [request.key for request in requests]
    results = {result.key: result for result in client.answer(lambda num: [requests.pop(0) for _ in requests[:num]])}
    return task.warmed_up([results[key] for key in order])
