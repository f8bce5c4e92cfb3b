"""What a kind of task is to the job, to the SQL functions and to the partition that runs it.

A kind (`TaskKind`) says what may be set, which columns it adds, what of it is part of a row's key, and prepares a task:
the text around a row's values and a `Task`. For each row the task starts a small state machine, a `TaskRun`:

    run = task.start(row)
    run.first_requests()           requests for the engine, whose keys are the run's own
    run.on_result(result)          after each result of the engine: further requests (or none yet), or the row's result

A row's requests depend on the row alone: not on its neighbours, and not on the order of the engine's results.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from dolly_batch.prompt import PromptEncoder, encoder_of
from dolly_batch.records import Completion, GenerationParams, PartialAnswer, Row, Scores
from dolly_batch.tasks.arguments import SqlArgument

PREFILL_SPEEDUP = 8  # a token that is only read or scored costs about this much less than one that is generated


@dataclass(frozen=True, slots=True)
class TaskInput:
    """One row, as planned. `partial` is an answer to resume, up to `max_new_tokens` of this row's own."""

    instruction: str
    context: str | None
    seed: int = 0
    partial: PartialAnswer | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What a run puts into the output's columns; `extras` are the kind's own columns, in their order."""

    response: str | None
    status: str
    error: str | None
    finish_reason: str | None
    num_completion_tokens: int | None
    num_prompt_tokens: int | None = None
    """The prompt tokens of all its requests, where that is not what was planned."""
    extras: tuple[object, ...] = ()
    num_partial_tokens: int | None = None
    """Tokens reused from a partial answer, 0 where it was restarted; None where there was none."""


class TaskRun(Protocol):
    """One row in work."""

    def first_requests(self) -> Sequence[Row]:
        """The first requests, at least one. Their keys are the run's own."""

    def on_result(self, result: Completion | Scores) -> Sequence[Row] | TaskResult:
        """Further requests after a result, none while others are outstanding; or the row's result."""


@dataclass(frozen=True, slots=True)
class SingleRequestRun:
    """A row that takes one request, whose result is read by `read`."""

    request: Row
    read: Callable[[Completion | Scores], TaskResult]

    def first_requests(self) -> Sequence[Row]:
        """The one request."""
        return (self.request,)

    def on_result(self, result: Completion | Scores) -> TaskResult:
        """The row's result."""
        return self.read(result)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is done for every row. Subclasses are frozen dataclasses: they cross to executors."""

    system: str | None = None
    """The system prompt of all its requests, which the queue puts into them."""

    def start(self, row: TaskInput) -> TaskRun:
        """The run of one row."""
        raise NotImplementedError

    def warm_up_requests(self) -> Sequence[Row]:
        """Requests that are asked once, before any row's; often none."""
        return ()

    def warmed_up(self, results: Sequence[Completion | Scores]) -> "Task":
        """The task with the results of `warm_up_requests`, in order. Raises EngineError when one of them failed."""
        return self


@dataclass(frozen=True)
class PreparedTask:
    """How a row's values become a prompt, and the task that reads the answers.

    The instruction is `literals` with the row's values between them; there is one literal more than there are values.
    `num_reserved` tokens of the model's positions follow the prompt; `num_new_tokens` is what an answer costs, in
    generated tokens. `shares` tells whether equal requests have equal answers, whatever the row. A row's text may have
    `any_length` where the task splits it. `grammar` is the JSON schema that answers follow.
    """

    task: Task
    literals: tuple[str, ...]
    num_reserved: int
    num_new_tokens: int
    shares: bool
    reads_text: bool
    any_length: bool = False
    grammar: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class TaskModel:
    """What a task needs to know of the model that answers: its folder, for the tokenizer, and its positions.

    `system` is the job's system prompt, which stands in every prompt.
    """

    folder: str
    max_positions: int
    system: str | None = None

    @property
    def encoder(self) -> PromptEncoder:
        """The model's prompt encoder, read once a process. Raises ConfigError as `with_system` does."""
        return encoder_of(self.folder).with_system(self.system)

    @property
    def is_chat(self) -> bool:
        """Whether its prompt format is a chat model's, not Dolly's."""
        return self.encoder.format.name == "chat"

    def count(self, text: str) -> int:
        """The tokens of a text."""
        return len(self.encoder.encode_text(text))


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """The settings of a task, of whatever kind: the section `task` of a job file. `kind` is a name in `KINDS`.

    `system` is a system prompt, for models whose prompt has a place for one.
    """

    kind: str
    system: str | None = None

    @property
    def cascade(self) -> Any:
        """The settings of a cascade (tasks/cascade.py), for the kind that has one; None without."""
        return None


class TaskKind:
    """A kind of task: everything that the job and the SQL function know of it. One instance each, in `KINDS`."""

    name: ClassVar[str]
    settings: ClassVar[type[TaskSettings]]
    """The keys of a job's section `task`: a frozen dataclass that raises SettingError for impossible values."""
    reads_text: ClassVar[bool] = True
    """Whether it reads `input.text`, as the context of an instruction that is the same for all rows."""
    generates: ClassVar[bool] = True
    """Whether the parameters of generation can change an answer."""
    resumes: ClassVar[bool] = False
    """Whether a truncated answer can be resumed: it is the model's own text, of one request."""
    columns: ClassVar[Mapping[str, Any]] = {}
    """The columns that it adds to the output, by name, in Spark's JSON types."""
    in_prompt: ClassVar[frozenset[str]] = frozenset({"instruction"})
    """Settings that show in every row's prompt, and so in its request key without being named there."""
    executor_needs: ClassVar[tuple[str, ...]] = ()
    """Modules that executors must have, in addition to those that load a model."""
    sql_arguments: ClassVar[tuple[SqlArgument, ...]] = ()
    """Those behind the text."""
    sql_columns: ClassVar[tuple[str, ...]] = ()
    """Those of `columns` that the `try_` function returns too."""

    def settled(self, settings: Any, model: TaskModel) -> Any:
        """The settings with what they leave to the model put in: these are the ones in request keys."""
        return settings

    def prepare(self, settings: Any, model: TaskModel, params: GenerationParams) -> PreparedTask:
        """The task for these settings. Raises ConfigError for settings that cannot work with this model."""
        raise NotImplementedError

    def template_columns(self, settings: Any) -> list[str] | None:
        """The input columns that make the instruction, in its order; None where it is `input.instruction`, or none."""
        return None

    def response_schema(self, settings: Any) -> Mapping[str, Any] | None:
        """The JSON schema of the column `response` where that is a struct, None where it is text."""
        return None

    def with_arguments(self, settings: Any, arguments: Mapping[str, Any]) -> Any:
        """The settings with those of one SQL call put over them, of the types that `sql_arguments` takes.

        Raises ConfigError, naming the argument.
        """
        return settings

    @property
    def sql_placeholders(self) -> Mapping[str, Any]:
        """Valid values for the settings that only a call gives, so that the others can be checked without a call."""
        return {}


class SettingError(ValueError):
    """A setting that cannot work; `setting` is its name."""

    def __init__(self, setting: str, message: str) -> None:
        super().__init__(message)
        self.setting = setting


def check_at_least(settings: Any, least: float, *names: str) -> None:
    """Raise SettingError for a setting below `least`; those that are None are left out."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < least:
            raise SettingError(name, f"must be {least} or more, found {value}")


def check_not_empty(settings: Any, *names: str) -> None:
    """Raise SettingError for an empty text."""
    for name in names:
        if getattr(settings, name) == "":
            raise SettingError(name, "must not be empty")


def row_seed(seed: int, row_key: str) -> int:
    """The seed of one row, 63 bits: the same whatever batch, partition or attempt the row runs in."""
    digest = hashlib.sha256(f"{seed}:{row_key}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def call_seed(seed: int, call: int) -> int:
    """The seed of a row's call number `call`; that of the first is the row's own."""
    return seed if call == 0 else row_seed(seed, str(call))
