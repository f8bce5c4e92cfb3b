"""Tasks on a real engine without Spark and without a host: what a partition does, in one process."""

from collections.abc import Callable, Iterator, Sequence

from dolly_batch.engine.protocol import Engine
from dolly_batch.host.encoding import RowEncoder
from dolly_batch.records import Completion, Failure, Row, Scores
from dolly_batch.tasks.base import Task, TaskInput, TaskResult
from dolly_batch.tasks.queue import QueuedRow, answer_rows, warm_up


class EngineClient:
    """Answers requests as the client of an engine host does, by an engine of this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._encoder = RowEncoder(engine.encoder, engine.max_positions)

    def answer(self, take: Callable[[int], Sequence[Row]]) -> Iterator[Completion | Scores]:
        while rows := take(32):
            for request in self._encoder.encode(rows):
                assert not isinstance(request, Failure)
                self._engine.submit(request)
            while self._engine.num_unfinished:
                yield from self._engine.step()


def work_all(engine: Engine, task: Task, rows: Sequence[TaskInput]) -> list[TaskResult]:
    """The results, in the order of the rows."""
    client = EngineClient(engine)
    warm = warm_up(client, task)
    results = dict(answer_rows(client, (QueuedRow(number, warm, row) for number, row in enumerate(rows))))
    return [results[number] for number in range(len(rows))]
