"""Inside one task of a query, on an executor: a SQL function's rows to the engine host, and back in their order."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import zip_longest
from typing import Any

from dolly_batch.errors import CalibrationError, ConfigError
from dolly_batch.host.address import HostAddress
from dolly_batch.host.quarantine import RetryingClient
from dolly_batch.records import EngineSpec, GenerationParams
from dolly_batch.spark.generate.device import task_device
from dolly_batch.spark.generate.sql_columns import NotUtf8, values_of
from dolly_batch.spark.plan.prepared_task import prepare_settings
from dolly_batch.tasks import KINDS
from dolly_batch.tasks.arguments import TEXT, check_argument
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
        warm: dict[Task, Task | TaskResult] = {}
        for batch in batches:
            columns = [values_of(column) for column in (batch if isinstance(batch, tuple) else (batch,))]
            starts = [_start(function, prepare, arguments) for arguments in zip(*columns, strict=True)]
            results = {number: one for number, one in enumerate(starts) if isinstance(one, TaskResult)}
            rows = {number: one for number, one in enumerate(starts) if isinstance(one, tuple)}
            if rows and client is None:  # a batch without a request needs no model
                client = stack.enter_context(RetryingClient(function.spec, HostAddress.of_this_executor(task_device())))
            if client is not None:
                # Of many labels or schemas no more than a batch's are kept.
                warm = {task: warm.get(task) or _warmed(client, task) for task in {task for task, _ in rows.values()}}
                ready = [(number, warm[task], row) for number, (task, row) in rows.items()]
                results |= {number: fault for number, fault, _ in ready if isinstance(fault, TaskResult)}
                queued = (QueuedRow(number, task, row) for number, task, row in ready if isinstance(task, Task))
                results |= dict(answer_rows(client, queued))
            yield [results.get(number) for number in range(len(starts))]


def _warmed(client: RetryingClient, task: Task) -> Task | TaskResult:
    """The task, ready; or the fault of all its rows, where the model's scores cannot be calibrated."""
    try:
        return warm_up(client, task)
    except CalibrationError as error:
        return _fault("model_error", str(error))


class _Preparation:
    """A function's task for the settings of one call, as JSON: a list of their values, in their order."""

    def __init__(self, function: SqlFunction) -> None:
        self._function = function

    def __call__(self, settings: str) -> PreparedTask:
        function, kind = self._function, KINDS[self._function.kind]
        names = [argument.name for argument in kind.sql_arguments if not argument.is_column]
        try:
            of_call = call_settings(kind, function.settings, dict(zip(names, json.loads(settings), strict=True)))
            return prepare_settings(kind, of_call, function.model, function.params)
        except (TypeError, ValueError, LookupError, RecursionError) as error:
            # Whatever no check has foreseen in a text from a query is a fault of that call, not of the query.
            raise ConfigError(f"{', '.join(names)}: cannot be used ({type(error).__name__})") from error


def call_settings(kind: TaskKind, settings: Any, arguments: Mapping[str, Any]) -> Any:
    """The settings with those of one call put over them. Raises ConfigError for ones that a job would refuse too."""
    try:
        return kind.with_arguments(settings, arguments)
    except SettingError as error:
        raise ConfigError(f"{error.setting}: {error}") from error


def _start(function: SqlFunction, prepare: Any, arguments: Sequence[Any]) -> Started | TaskResult | None:
    """A row's task and input; its result where it cannot run; None for a null text."""
    if arguments[0] is None:
        return None
    try:
        text, settings, context = _checked(KINDS[function.kind], arguments)
        prepared: PreparedTask = prepare(json.dumps(settings))
        if is_blank(text):
            return _fault("empty_instruction", "the text is blank")
        values, context = ((), text) if prepared.reads_text else ((text,), context)
        row = TaskInput(fill(prepared.literals, values), context, row_seed(function.seed, text))
        return prepared.task, row if prepared.any_length else _fitted(function, prepared, values, row)
    except ConfigError as error:
        return _fault("invalid_arguments", str(error))
    except UnicodeEncodeError:
        return _fault("bad_encoding", "the text holds half of a surrogate pair")
    except _NotUtf8Error as error:
        return _fault("bad_encoding", str(error))
    except _TooLongError as error:
        return _fault("too_long", str(error))


def _checked(kind: TaskKind, values: Sequence[Any]) -> tuple[str, list[Any], str | None]:
    """A call's text, its settings and the row's context. Raises ConfigError for values of other types."""
    arguments = (TEXT, *kind.sql_arguments)
    if len(values) > len(arguments):
        names = ", ".join(argument.name for argument in arguments)
        raise ConfigError(f"dolly_{kind.name} takes {names}, and was given {len(values)} arguments")
    settings, context = [], None
    for argument, value in zip_longest(arguments, values):
        if isinstance(value, NotUtf8):
            raise _NotUtf8Error(f"{argument.name} is not valid UTF-8")
        checked = check_argument(argument, value)
        if not argument.is_column:
            settings.append(checked)
        elif argument is not TEXT:
            context = checked or None
    return values[0], settings, context


class _NotUtf8Error(Exception):
    """A value that holds a text that is not UTF-8."""


class _TooLongError(Exception):
    """A prompt that does not fit, and cannot or may not be cut."""


def _fitted(function: SqlFunction, prepared: PreparedTask, values: Sequence[str], row: TaskInput) -> TaskInput:
    """The row as it is where its prompt fits, else cut as `long_prompt` says."""
    encoder = function.model.encoder.with_system(prepared.task.system)
    limit = function.max_positions - prepared.num_reserved
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


def result_rows(function: SqlFunction, results: Sequence[TaskResult | None], *, tries: bool) -> list[Any]:
    """What the function returns for each row: its response, or a dict of the fields of its `try_` variant."""
    if tries:
        return [_fields(KINDS[function.kind], result) for result in results]
    return [None if result is None else result.response for result in results]


def _fields(kind: TaskKind, result: TaskResult | None) -> dict[str, Any]:
    """A row of a `try_` function: `error` is null exactly for rows that are ok."""
    if result is None:
        columns: dict[str, Any] = {"response": None, "error": "null_instruction: the text is null"}
    else:
        error = None if result.status == "ok" else ": ".join(filter(None, (result.status, result.error)))
        columns = {"response": result.response, "error": error}
    extras = dict(zip(kind.columns, result.extras if result is not None else (), strict=False))
    return {**columns, **{name: extras.get(name) for name in kind.sql_columns}}
