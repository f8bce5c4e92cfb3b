"""Tasks on a real engine without Spark: what a partition does, in one process."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from dolly_batch.engine.protocol import Engine
from dolly_batch.host.encoding import RowEncoder
from dolly_batch.records import Completion, Failure, Row, Scores
from dolly_batch.tasks.base import Answer, Subject, Task


def work_all(engine: Engine, task: Task, subjects: Sequence[Subject]) -> list[Answer]:
    """The answers, in the order of the subjects."""
    encoder = RowEncoder(engine.encoder, engine.max_positions)

    def ask(rows: Sequence[Row]) -> list[Completion | Scores]:
        requests = encoder.encode(rows)
        for request in requests:
            assert not isinstance(request, Failure)
            engine.submit(request)
        found: list[Completion | Scores] = []
        while engine.num_unfinished:
            found += engine.step()
        return found

    first = {answer.key: answer for answer in ask(task.prepare())}
    task = task.prepared([first[row.key] for row in task.prepare()])
    works = [task.begin(subject) for subject in subjects]
    answers: dict[int, Answer] = {}
    waiting: deque[Row] = deque()
    for number, work in enumerate(works):
        waiting.extend(replace(row, key=f"{number}/{row.key}") for row in work.start())
    while waiting:
        rows = list(waiting)
        waiting.clear()
        for found in ask(rows):
            number, _, key = found.key.partition("/")
            result = works[int(number)].take(replace(found, key=key))
            if isinstance(result, Answer):
                answers[int(number)] = result
            else:
                waiting.extend(replace(row, key=f"{number}/{row.key}") for row in result)
    return [answers[number] for number in range(len(subjects))]
