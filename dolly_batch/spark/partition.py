"""Inside one task, on an executor: a shard's rows to the engine host and its answers back."""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from pyspark import TaskContext
from pyspark.sql import types as T

from dolly_batch.host.client import EngineClient
from dolly_batch.host.place import HostPlace
from dolly_batch.host.wire import PromptRow
from dolly_batch.records import Completion, EngineSpec, GenerationParams
from dolly_batch.spark.resources import task_device
from dolly_batch.tasks.generate import read_answer, row_seed

# Answers that a task hands to Spark at once: enough to make Arrow worth it, few enough to keep memory flat.
ROWS_PER_BATCH = 512
PROGRESS_EVERY_S = 1.0

STAGED_SCHEMA = T.StructType(
    [
        T.StructField("row_key", T.StringType()),
        T.StructField("request_key", T.StringType()),
        T.StructField("response", T.StringType()),
        T.StructField("status", T.StringType()),
        T.StructField("error", T.StringType()),
        T.StructField("finish_reason", T.StringType()),
        T.StructField("num_prompt_tokens", T.IntegerType()),
        T.StructField("num_completion_tokens", T.IntegerType()),
        T.StructField("engine_id", T.StringType()),
        T.StructField("engine_load", T.IntegerType()),
        T.StructField("busy_s", T.DoubleType()),
    ]
)


@dataclass(frozen=True)
class ShardTask:
    """What crosses to the executors: which engine, how to decode, and where to tell how far it is."""

    spec: EngineSpec
    params: GenerationParams
    seed: int
    progress: str | None
    """A folder that the driver sees too, or None where there is none."""


def answer_shard(task: ShardTask, batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """Answer the rows of one shard: as many rows out as in, in the order in which they end.

    Raises the engine host's errors, so that Spark runs the task again.
    """
    rows = _rows(batches)
    first = next(rows, None)
    if first is None:  # Spark calls for empty partitions too; they need no model
        return
    started = time.monotonic()
    with EngineClient.connect(task.spec, HostPlace.of_this_executor(task_device())) as client:
        shared = SharedAnswers(_chained(first, rows), task)
        progress = Progress(task.progress)
        staged: list[tuple[object, ...]] = []
        origin = (client.engine_id, client.load_number)
        for completion in client.generate(shared.requests()):
            for row in shared.answered(completion):
                staged.append((*row, *origin, None))
                progress.add(row[-1])
            if len(staged) > ROWS_PER_BATCH:
                yield _frame(staged[:-1])
                del staged[:-1]
        # The time this task took stands on its last row; the budget of GPU hours adds these up.
        staged[-1] = (*staged[-1][:-1], time.monotonic() - started)
        yield _frame(staged)
        progress.finish()


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a shard."""

    row_key: str
    request_key: str
    instruction: str
    context: str | None
    num_prompt_tokens: int


class SharedAnswers:
    """Rows that ask the same are sent once when decoding is greedy, and all get that one answer.

    Equal requests lie side by side in a shard, so a row has only its predecessor to be compared with. A row that is
    read after its leader was answered is asked anew, and leads those after it.
    """

    def __init__(self, rows: Iterator[Row], task: ShardTask) -> None:
        self._rows = rows
        self._task = task
        self._asking: dict[str, list[Row]] = {}

    def requests(self) -> Iterator[PromptRow]:
        """The rows to send. A request's key is the row key of its leader."""
        greedy = not self._task.params.do_sample
        leader: Row | None = None
        for row in self._rows:
            if greedy and leader and leader.request_key == row.request_key and leader.row_key in self._asking:
                self._asking[leader.row_key].append(row)
                continue
            leader = row
            self._asking[row.row_key] = [row]
            seed = row_seed(self._task.seed, row.row_key)
            yield PromptRow(row.row_key, row.instruction, row.context, self._task.params, seed)

    def answered(self, completion: Completion) -> Iterator[tuple[object, ...]]:
        """The staged columns of all rows that asked for this completion."""
        answer = read_answer(completion)
        for row in self._asking.pop(completion.key):
            yield (
                row.row_key,
                row.request_key,
                answer.response,
                answer.status,
                answer.error,
                answer.finish_reason,
                row.num_prompt_tokens,
                answer.num_completion_tokens,
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

    def add(self, num_tokens: object) -> None:
        """Count one answered row."""
        self.num_rows += 1
        self.num_tokens += num_tokens if isinstance(num_tokens, int) else 0
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
        for row_key, request_key, instruction, context, tokens in batch.itertuples(index=False, name=None):
            yield Row(row_key, request_key, instruction, None if pd.isna(context) else context, int(tokens))


def _chained(first: Row, rest: Iterator[Row]) -> Iterator[Row]:
    yield first
    yield from rest


def _frame(staged: list[tuple[object, ...]]) -> pd.DataFrame:
    frame = pd.DataFrame(staged, columns=[field.name for field in STAGED_SCHEMA.fields])
    # Counts of rows without an answer are null, which pandas' own integers cannot be.
    return frame.astype({"num_prompt_tokens": "Int32", "num_completion_tokens": "Int32", "engine_load": "int32"})
