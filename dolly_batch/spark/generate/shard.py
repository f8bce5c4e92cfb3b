"""Inside one task, on an executor: a shard's rows to the engine host and its answers back."""

import contextlib
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
from pyspark import TaskContext
from pyspark.sql import types as T

from dolly_batch.host.address import HostAddress
from dolly_batch.host.retry import RetryingClient
from dolly_batch.records import Completion, EngineSpec, PartialAnswer, Scores
from dolly_batch.records import Row as Question
from dolly_batch.spark.generate.device import task_device
from dolly_batch.spark.tables.schemas import TASK_FIELDS
from dolly_batch.tasks.base import Answer, Subject, Task, Work, row_seed

# Answers that a task hands to Spark at once: enough to make Arrow worth it, few enough to keep memory flat.
ROWS_PER_BATCH = 512
PROGRESS_EVERY_S = 1.0

STAGED_FIELDS = (
    T.StructField("row_key", T.StringType()),
    T.StructField("request_key", T.StringType()),
    T.StructField("response", T.StringType()),
    T.StructField("status", T.StringType()),
    T.StructField("error", T.StringType()),
    T.StructField("finish_reason", T.StringType()),
    T.StructField("num_prompt_tokens", T.IntegerType()),
    T.StructField("num_completion_tokens", T.IntegerType()),
    T.StructField("num_begun_tokens", T.IntegerType()),
)
# When the task began and ended, in seconds of its machine's monotonic clock, stand on its last row.
ORIGIN_FIELDS = (
    T.StructField("engine_id", T.StringType()),
    T.StructField("engine_load", T.IntegerType()),
    T.StructField("began_s", T.DoubleType()),
    T.StructField("ended_s", T.DoubleType()),
)
# Counts of rows without an answer are null, which pandas' own integers cannot be.
_PANDAS_TYPES = {"int": "Int32"}


def staged_schema(kind: str) -> T.StructType:
    """The columns of a wave's staged answers, by the kind of task: `response` is text whatever the task."""
    return T.StructType([*STAGED_FIELDS, *TASK_FIELDS[kind], *ORIGIN_FIELDS])


@dataclass(frozen=True)
class ShardTask:
    """What crosses to the executors: which engine, what to do with each row, and where to tell how far it is.

    `shares` tells whether rows of equal requests get one answer; `progress` is a folder that the driver sees too.
    """

    spec: EngineSpec
    kind: str
    task: Task
    seed: int
    shares: bool
    progress: str | None


def answer_shard(task: ShardTask, batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Answer the rows of one shard: as many rows out as in, in the order in which they end.

    Rows of a host that ends are asked again. Raises EngineError when that does not help, so that Spark runs the task
    again.
    """
    rows = _rows(batches)
    first = next(rows, None)
    if first is None:  # Spark calls for empty partitions too; they need no model
        return
    began_s = time.monotonic()
    schema = staged_schema(task.kind)
    with RetryingClient(task.spec, HostAddress.of_this_executor(task_device(task.spec.gpus))) as client:
        desk = Desk(_chained(first, rows), task, ask_first(client, task.task))
        progress = Progress(task.progress)
        staged: list[tuple[object, ...]] = []
        for answer in client.answer(desk.take):
            for row, num_tokens in desk.answered(answer):
                staged.append((*row, client.engine_id, client.incarnation, None, None))
                progress.add(num_tokens)
            if len(staged) > ROWS_PER_BATCH:
                yield _frame(staged[:-1], schema)
                del staged[:-1]
        staged[-1] = (*staged[-1][:-2], began_s, time.monotonic())
        yield _frame(staged, schema)
        progress.finish()


def ask_first(client: RetryingClient, task: Task) -> Task:
    """The task with the answers to what it asks once, before any row. Raises EngineError when it cannot go on."""
    questions = list(task.prepare())
    if not questions:
        return task
    order = [question.key for question in questions]
    answers = {answer.key: answer for answer in client.answer(lambda num: [questions.pop(0) for _ in questions[:num]])}
    return task.prepared([answers[key] for key in order])


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a shard."""

    row_key: str
    request_key: str
    instruction: str
    context: str | None
    num_prompt_tokens: int
    partial: PartialAnswer | None = None
    max_new_tokens: int | None = None
    """Of this row, where it is not the job's."""

    def asks_the_same(self, other: "Row") -> bool:
        """Whether both have the same answer, where equal questions have."""
        mine = (self.request_key, self.partial, self.max_new_tokens)
        return mine == (other.request_key, other.partial, other.max_new_tokens)


class Desk:
    """The rows of a shard that are being worked on: what to ask next, and who gets an answer.

    Rows that ask the same are worked on once where their answers are the same, and all get that one answer. Equal
    requests lie side by side in a shard, so a row has only its predecessor to be compared with. A row that is read
    after its leader was answered is asked anew, and leads those after it.
    """

    def __init__(self, rows: Iterator[Row], task: ShardTask, prepared: Task) -> None:
        self._rows = rows
        self._task = task
        self._prepared = prepared
        self._open: dict[str, tuple[Work, list[Row]]] = {}
        self._waiting: deque[Question] = deque()  # questions that follow from answers come before new rows
        self._leader: Row | None = None

    def take(self, num_questions: int) -> list[Question]:
        """At most so many questions, none when all rows have been asked about. Their keys are `row key/call`."""
        while len(self._waiting) < num_questions and (row := next(self._rows, None)) is not None:
            self._begin(row)
        return [self._waiting.popleft() for _ in range(min(num_questions, len(self._waiting)))]

    def _begin(self, row: Row) -> None:
        leader = self._leader
        if self._task.shares and leader and leader.asks_the_same(row) and leader.row_key in self._open:
            self._open[leader.row_key][1].append(row)
            return
        self._leader = row
        seed = row_seed(self._task.seed, row.row_key)
        work = self._prepared.begin(Subject(row.instruction, row.context, seed, row.partial, row.max_new_tokens))
        self._open[row.row_key] = (work, [row])
        self._ask(row.row_key, work.start())

    def _ask(self, row_key: str, questions: Sequence[Question]) -> None:
        self._waiting.extend(replace(question, key=f"{row_key}/{question.key}") for question in questions)

    def answered(self, found: Completion | Scores) -> Iterator[tuple[tuple[object, ...], int]]:
        """The staged columns, and the tokens written, of all rows that this answer ends; often none."""
        row_key, _, call = found.key.rpartition("/")
        if row_key not in self._open:
            return  # the row has failed meanwhile, by another of its questions
        work, rows = self._open[row_key]
        result = work.take(replace(found, key=call))
        if not isinstance(result, Answer):
            self._ask(row_key, result)
            return
        del self._open[row_key]
        for row in rows:
            yield _staged(row, result), result.num_completion_tokens or 0


def _staged(row: Row, answer: Answer) -> tuple[object, ...]:
    num_prompt_tokens = row.num_prompt_tokens if answer.num_prompt_tokens is None else answer.num_prompt_tokens
    return (
        row.row_key,
        row.request_key,
        answer.response,
        answer.status,
        answer.error,
        answer.finish_reason,
        num_prompt_tokens,
        answer.num_completion_tokens,
        answer.num_partial_tokens,
        *answer.extras,
    )


@dataclass
class Progress:
    """Tells the driver how far this task is, through a small file where both can see one.

    Only for the eye: a file that cannot be written is no error, and nothing is decided by it.
    """

    folder: str | None
    num_rows: int = 0
    num_tokens: int = 0
    _written: float = field(default_factory=time.monotonic)

    def add(self, num_tokens: int) -> None:
        """Count one answered row."""
        self.num_rows += 1
        self.num_tokens += num_tokens
        if time.monotonic() - self._written >= PROGRESS_EVERY_S:
            self.finish()

    def finish(self) -> None:
        """Write the counts down."""
        self._written = time.monotonic()
        context = TaskContext.get()
        if self.folder is None or context is None:
            return
        with contextlib.suppress(OSError):
            path = Path(self.folder) / str(context.partitionId())
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{context.taskAttemptId()}")
            partial.write_text(f"{self.num_rows} {self.num_tokens}", encoding="ascii")
            os.replace(partial, path)


def _rows(batches: Iterator[pd.DataFrame]) -> Iterator[Row]:
    for batch in batches:
        for row_key, request_key, instruction, context, tokens, *rest in batch.itertuples(index=False, name=None):
            partial, limit = _partial(*rest)
            context = None if pd.isna(context) else context
            yield Row(row_key, request_key, instruction, context, int(tokens), partial, limit)


def _partial(text: str, num_tokens: Any, max_new_tokens: Any) -> tuple[PartialAnswer | None, int | None]:
    if pd.isna(num_tokens):
        return None, None
    return PartialAnswer(text, int(num_tokens)), int(max_new_tokens)


def _chained(first: Row, rest: Iterator[Row]) -> Iterator[Row]:
    yield first
    yield from rest


def _frame(staged: list[tuple[object, ...]], schema: T.StructType) -> pd.DataFrame:
    frame = pd.DataFrame(staged, columns=schema.names)
    types = {field.name: _PANDAS_TYPES.get(field.dataType.simpleString()) for field in schema.fields}
    return frame.astype({name: kind for name, kind in types.items() if kind})
