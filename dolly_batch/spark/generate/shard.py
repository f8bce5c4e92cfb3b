"""Inside one task, on an executor: sends a shard's rows to the engine host and stages the answers."""

import time
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import pandas as pd
from pyspark.sql import types as T

from dolly_batch.cascade.proxy import Proxy
from dolly_batch.host.address import HostAddress
from dolly_batch.host.quarantine import RetryingClient
from dolly_batch.records import ERROR_STATUSES, EngineSpec, PartialAnswer
from dolly_batch.spark.generate.by_proxy import answered_by_proxy
from dolly_batch.spark.generate.device import task_device
from dolly_batch.spark.generate.progress import TaskProgress, WaveProgress
from dolly_batch.spark.tables.schemas import task_fields
from dolly_batch.tasks.base import Task, TaskInput, TaskResult, TaskSettings, row_seed
from dolly_batch.tasks.queue import QueuedRow, answer_rows, warm_up

# Answers that a task hands to Spark at once: enough to make Arrow worth it, few enough to keep memory flat.
ROWS_PER_BATCH = 512

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


def staged_schema(settings: TaskSettings) -> T.StructType:
    """The columns of a wave's staged answers, by the task: `response` is text whatever it is."""
    fields = task_fields(settings.kind, cascades=settings.cascade is not None)
    return T.StructType([*STAGED_FIELDS, *fields, *ORIGIN_FIELDS])


@dataclass(frozen=True)
class ShardTask:
    """What crosses to the executors: which engine, the task of each row, and where to report progress.

    `schema` is what it stages. `shares` tells whether rows of equal requests get one answer. With `cascades` it stages
    who answered; `proxy` answers what it can before the model does.
    """

    spec: EngineSpec
    schema: T.StructType
    task: Task
    seed: int
    shares: bool
    progress: WaveProgress
    cascades: bool = False
    proxy: Proxy | None = None


def answer_shard(task: ShardTask, batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Answer the rows of one shard: as many rows out as in, in the order in which they end.

    Rows of a host that ends are asked again. Raises EngineError when that does not help, so that Spark runs the task
    again.
    """
    rows, progress = _rows(batches), TaskProgress(task.progress)
    if task.proxy is not None:
        rows = iter((yield from _by_proxy(task, task.proxy, rows, progress)))
    yield from _by_model(task, rows, progress)
    if progress.num_rows:  # Spark calls for empty partitions too
        progress.end()


def _by_proxy(
    task: ShardTask, proxy: Proxy, rows: Iterator["ShardRow"], progress: TaskProgress
) -> Generator[pd.DataFrame, None, list["ShardRow"]]:
    """Stage what the proxy answers; the rows that it leaves to the model are returned."""
    left: list[ShardRow] = []
    hash, nobody = proxy.hash, (None,) * len(ORIGIN_FIELDS)
    while batch := list(islice(rows, ROWS_PER_BATCH)):
        staged = []
        for row, result in answered_by_proxy(proxy, batch):
            if result is None:
                left.append(row)
            else:
                staged.append((*_staged(row, result), "proxy", hash, *nobody))
                progress.add(0, row.num_prompt_tokens)
        if staged:
            yield _frame(staged, task.schema)
    return left


def _by_model(task: ShardTask, rows: Iterator["ShardRow"], progress: TaskProgress) -> Iterator[pd.DataFrame]:
    first = next(rows, None)
    if first is None:  # they need no model
        return
    began_s = time.monotonic()
    with RetryingClient(task.spec, HostAddress.of_this_executor(task_device(task.spec.gpus))) as client:
        queued = _queued(task, warm_up(client, task.task), chain([first], rows))
        by = ("model", None) if task.cascades else ()
        staged: list[tuple[object, ...]] = []
        for row, result in answer_rows(client, queued):
            staged.append((*_staged(row, result), *by, client.engine_id, client.incarnation, None, None))
            progress.add(*_counted(row, result), is_error=result.status in ERROR_STATUSES)
            if len(staged) > ROWS_PER_BATCH:
                yield _frame(staged[:-1], task.schema)
                del staged[:-1]
        staged[-1] = (*staged[-1][:-2], began_s, time.monotonic())
        yield _frame(staged, task.schema)


@dataclass(frozen=True, slots=True)
class ShardRow:
    """One row of a shard."""

    row_key: str
    request_key: str
    instruction: str
    context: str | None
    num_prompt_tokens: int
    partial: PartialAnswer | None = None
    max_new_tokens: int | None = None
    """Of this row, where it is not the job's."""


def _queued(task: ShardTask, warm: Task, rows: Iterable[ShardRow]) -> Iterator[QueuedRow[ShardRow]]:
    for row in rows:
        seed = row_seed(task.seed, row.row_key)
        values = TaskInput(row.instruction, row.context, seed, row.partial, row.max_new_tokens)
        shared_as = (row.request_key, row.partial, row.max_new_tokens) if task.shares else None
        yield QueuedRow(row, warm, values, shared_as)


def _counted(row: ShardRow, result: TaskResult) -> tuple[int, int]:
    """Tokens that were generated for a row, and those of its prompt as planned."""
    return (result.num_completion_tokens or 0) - (result.num_partial_tokens or 0), row.num_prompt_tokens


def _staged(row: ShardRow, result: TaskResult) -> tuple[object, ...]:
    return (
        row.row_key,
        row.request_key,
        result.response,
        result.status,
        result.error,
        result.finish_reason,
        row.num_prompt_tokens if result.num_prompt_tokens is None else result.num_prompt_tokens,
        result.num_completion_tokens,
        result.num_partial_tokens,
        *result.extras,
    )


def _rows(batches: Iterator[pd.DataFrame]) -> Iterator[ShardRow]:
    for batch in batches:
        for row_key, request_key, instruction, context, tokens, *rest in batch.itertuples(index=False, name=None):
            partial, limit = _partial(*rest)
            context = None if pd.isna(context) else context
            yield ShardRow(row_key, request_key, instruction, context, int(tokens), partial, limit)


def _partial(text: str, num_tokens: Any, max_new_tokens: Any) -> tuple[PartialAnswer | None, int | None]:
    if pd.isna(num_tokens):
        return None, None
    return PartialAnswer(text, int(num_tokens)), int(max_new_tokens)


def _frame(staged: list[tuple[object, ...]], schema: T.StructType) -> pd.DataFrame:
    frame = pd.DataFrame(staged, columns=schema.names)
    types = {field.name: _PANDAS_TYPES.get(field.dataType.simpleString()) for field in schema.fields}
    return frame.astype({name: kind for name, kind in types.items() if kind})
