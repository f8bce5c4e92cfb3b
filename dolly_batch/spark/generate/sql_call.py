"""Inside one task of a query, on an executor: a SQL function's rows to the engine host, and back in their order."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import pandas as pd

from dolly_batch.errors import ConfigError
from dolly_batch.host.address import HostAddress
from dolly_batch.host.quarantine import RetryingClient
from dolly_batch.records import EngineSpec, GenerationParams
from dolly_batch.spark.generate.device import task_device
from dolly_batch.spark.plan.prepared_task import prepare_settings
from dolly_batch.tasks import KINDS
from dolly_batch.tasks.base import (
    PreparedTask,
    SettingError,
    Task,
    TaskInput,
    TaskKind,
    TaskModel,
    TaskResult,
    row_seed,
)
from dolly_batch.tasks.blank import is_blank
from dolly_batch.tasks.queue import QueuedRow, answer_rows, warm_up
from dolly_batch.tasks.truncate import fill, make_fit


@dataclass(frozen=True, eq=False)
class SqlFunction:
    """One registered function: what crosses to the executors. `settings` are those that no call gives."""

    kind: str
    settings: Any
    spec: EngineSpec
    params: GenerationParams
    max_positions: int
    seed: int
    long_prompt: str

    @property
    def model(self) -> TaskModel:
        """The model that answers, as tasks know it."""
        return TaskModel(self.spec.model_folder, self.max_positions)


Started = tuple[Task, TaskInput]
"""A row that is to be answered: its task, not warmed up yet, and its input."""


def answer_calls(function: SqlFunction, batches: Iterator[Any]) -> Iterator[list[TaskResult | None]]:
    """The results of each batch of arguments, in its order; None for a row whose text is null."""
    prepare = lru_cache(maxsize=64)(_Preparation(function))
    with ExitStack() as stack:
        client: RetryingClient | None = None
        warm: dict[Task, Task] = {}
        for batch in batches:
            columns = batch if isinstance(batch, tuple) else (batch,)
            starts = [_start(function, prepare, arguments) for arguments in zip(*columns, strict=True)]
            results = {number: one for number, one in enumerate(starts) if isinstance(one, TaskResult)}
            rows = {number: one for number, one in enumerate(starts) if isinstance(one, tuple)}
            if rows and client is None:  # a batch without a request needs no model
                client = stack.enter_context(RetryingClient(function.spec, HostAddress.of_this_executor(task_device())))
            if client is not None:
                # Of many labels or schemas no more than a batch's are kept.
                warm = {task: warm.get(task) or warm_up(client, task) for task in {task for task, _ in rows.values()}}
                queued = (QueuedRow(number, warm[task], row) for number, (task, row) in rows.items())
                results |= dict(answer_rows(client, queued))
            yield [results.get(number) for number in range(len(starts))]


class _Preparation:
    """A function's task for the settings of one call, which are hashable."""

    def __init__(self, function: SqlFunction) -> None:
        self._function = function

    def __call__(self, *settings: Any) -> PreparedTask:
        function, kind = self._function, KINDS[self._function.kind]
        names = [argument.name for argument in kind.sql_arguments if not argument.is_column]
        of_call = call_settings(kind, function.settings, dict(zip(names, settings, strict=True)))
        return prepare_settings(kind, of_call, function.model, function.params)


def call_settings(kind: TaskKind, settings: Any, arguments: Mapping[str, Any]) -> Any:
    """The settings with those of one call put over them. Raises ConfigError for ones that a job would refuse too."""
    try:
        return kind.with_arguments(settings, arguments)
    except SettingError as error:
        raise ConfigError(f"{error.setting}: {error}") from error


def _start(function: SqlFunction, prepare: Any, arguments: Sequence[Any]) -> Started | TaskResult | None:
    """A row's task and input; its result where it cannot run; None for a null text."""
    text = arguments[0]
    if text is None or (not isinstance(text, str) and pd.isna(text)):
        return None
    try:
        settings, context = _split(KINDS[function.kind], arguments[1:])
        prepared: PreparedTask = prepare(*settings)
        if is_blank(text):
            return _fault("empty_instruction", "the text is blank")
        values, context = ((), text) if prepared.reads_text else ((text,), context)
        row = TaskInput(fill(prepared.literals, values), context, row_seed(function.seed, text))
        return prepared.task, row if prepared.any_length else _fitted(function, prepared, values, row)
    except ConfigError as error:
        return _fault("invalid_arguments", str(error))
    except UnicodeEncodeError:
        return _fault("bad_encoding", "the text holds half of a surrogate pair")
    except _TooLongError as error:
        return _fault("too_long", str(error))


def _split(kind: TaskKind, arguments: Sequence[Any]) -> tuple[list[Any], str | None]:
    """A call's settings, made hashable, and the row's context. Raises ConfigError for nested lists."""
    settings, context = [], None
    for number, argument in enumerate(kind.sql_arguments):
        value = arguments[number] if number < len(arguments) else None
        if argument.is_column:
            context = value if isinstance(value, str) and value else None
            continue
        if value is not None and not pd.api.types.is_scalar(value):
            value = tuple(value)
            if not all(map(pd.api.types.is_scalar, value)):
                raise ConfigError(f"{argument.name}: must be a list of plain values")
        settings.append(value)
    return settings, context


class _TooLongError(Exception):
    """A prompt that does not fit, and cannot or may not be cut."""


def _fitted(function: SqlFunction, prepared: PreparedTask, values: Sequence[str], row: TaskInput) -> TaskInput:
    """The row as it is where its prompt fits, else cut as `long_prompt` says."""
    encoder, limit = function.model.encoder, function.max_positions - prepared.num_reserved
    if encoder.count(row.instruction, row.context, function.max_positions).num_tokens <= limit:
        return row
    if function.long_prompt == "error":
        raise _TooLongError(f"the prompt has over {limit} tokens, which is all that fits before the answer")
    side: Any = function.long_prompt
    cut = make_fit(encoder, prepared.literals, values, row.context, limit, side)
    if not cut.fits:
        raise _TooLongError(f"the prompt has over {limit} tokens without the text")
    return replace(row, instruction=cut.instruction, context=cut.context)


def _fault(status: str, message: str) -> TaskResult:
    return TaskResult(None, status, message, None, None)


def result_columns(kind: TaskKind, result: TaskResult | None) -> dict[str, Any]:
    """A row of a `try_` function: `error` is null exactly for rows that are ok."""
    if result is None:
        columns: dict[str, Any] = {"response": None, "error": "null_instruction: the text is null"}
    else:
        error = None if result.status == "ok" else ": ".join(filter(None, (result.status, result.error)))
        columns = {"response": result.response, "error": error}
    extras = dict(zip(kind.columns, result.extras if result is not None else (), strict=False))
    return {**columns, **{name: extras.get(name) for name in kind.sql_columns}}
