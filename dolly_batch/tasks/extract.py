"""Extract: the model's answer is held to a schema, token by token, so that it is valid JSON or ends too early."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from dolly_batch.records import Completion, GenerationParams, PromptRow, Scores
from dolly_batch.tasks.arguments import SqlArgument
from dolly_batch.tasks.base import (
    PreparedTask,
    SingleRequestRun,
    Task,
    TaskInput,
    TaskKind,
    TaskModel,
    TaskResult,
    TaskSettings,
    check_at_least,
    check_not_empty,
)
from dolly_batch.tasks.generate import completion_of, read_completion
from dolly_batch.tasks.schema import bound_schema, plain_schema, read_schema


@dataclass(frozen=True, kw_only=True)
class ExtractSettings(TaskSettings):
    """Extract fields as a struct. `schema` is Spark DDL (`name STRING, age INT`) or a JSON Schema of an object.

    `instruction` replaces the default one, which names the fields; the fields' descriptions follow either.
    `max_chars` and `max_items` bound strings and arrays that the schema does not bound itself; by default they are
    chosen so that the longest answer fits `generation.max_new_tokens` at two characters a token. Raises ConfigError for
    a schema that cannot be read.
    """

    kind: Literal["extract"] = "extract"
    schema: str | dict[str, Any]
    instruction: str | None = None
    max_chars: int | None = None
    max_items: int | None = None

    def __post_init__(self) -> None:
        check_at_least(self, 1, "max_chars", "max_items")
        check_not_empty(self, "instruction")
        read_schema(self.schema)


class ExtractKind(TaskKind):
    """`kind: extract`, and `dolly_extract(text, schema)`."""

    name = "extract"
    settings = ExtractSettings
    executor_needs = ("llguidance",)
    sql_arguments = (SqlArgument("schema", "schema"),)

    @property
    def sql_placeholders(self) -> Mapping[str, Any]:
        """A call gives the schema."""
        return {"schema": "a INT"}

    def prepare(self, settings: ExtractSettings, model: TaskModel, params: GenerationParams) -> PreparedTask:
        """Raises ConfigError for a schema whose shortest answer does not fit."""
        num_new = params.max_new_tokens
        bounded = bound_schema(
            read_schema(settings.schema), num_new, model.count, settings.max_chars, settings.max_items
        )
        return PreparedTask(
            task=Extract(params, grammar_of(bounded)),
            literals=((settings.instruction or default_instruction(bounded)) + descriptions(bounded),),
            num_reserved=num_new,
            num_new_tokens=num_new,
            shares=not params.do_sample,
            reads_text=True,
            grammar=plain_schema(bounded),
        )

    def response_schema(self, settings: ExtractSettings) -> Mapping[str, Any]:
        """The schema of the struct."""
        return read_schema(settings.schema)

    def with_arguments(self, settings: ExtractSettings, arguments: Mapping[str, Any]) -> ExtractSettings:
        """The schema is the call's."""
        return replace(settings, schema=arguments["schema"])


@dataclass(frozen=True)
class Extract(Task):
    """One request a row; `grammar` is the schema's text, as `Request.grammar` takes it."""

    params: GenerationParams
    grammar: str

    def start(self, row: TaskInput) -> SingleRequestRun:
        """The run of one row."""
        request = PromptRow("0", row.instruction, row.context, self.params, row.seed, "model", self.grammar)
        return SingleRequestRun(request, read_object)


def read_object(result: Completion | Scores) -> TaskResult:
    """The object as JSON text. Cut off by `max_new_tokens` it is no object: the response is null."""
    read = read_completion(completion_of(result))
    num_tokens = read.num_completion_tokens
    if read.status == "truncated":
        message = f"the object was not complete after {num_tokens} tokens"
        return TaskResult(None, "truncated", message, read.finish_reason, num_tokens)
    if read.response is None:
        return read
    value = parse_object(read.response)
    if value is None:
        return TaskResult(None, "invalid_output", "the answer is not a JSON object", read.finish_reason, num_tokens)
    return TaskResult(value, "ok", None, read.finish_reason, num_tokens)


def parse_object(text: str) -> str | None:
    """The object in a text as canonical JSON, None where there is none. Halves of surrogate pairs become U+FFFD."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict):
        return None
    written = json.dumps(value, ensure_ascii=False)
    return written.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def grammar_of(schema: Mapping[str, Any]) -> str:
    """A bounded schema as the text that travels with each question."""
    return json.dumps(plain_schema(schema), ensure_ascii=False, separators=(",", ":"))


def default_instruction(schema: Mapping[str, Any]) -> str:
    """What is asked where the job says nothing: the fields by name."""
    names = [*schema["properties"]]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"Extract the fields {listed} and answer with JSON only."


def descriptions(schema: Mapping[str, Any]) -> str:
    """What the schema says of itself and of its fields, a line each, to stand behind the instruction."""
    return "".join(f"\n{line}" for line in _described(schema, ""))


def _described(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    """Lines `- home.city: its description`; an array's items are `tags[]`."""
    if "description" in schema:
        yield f"- {path}: {schema['description']}" if path else schema["description"]
    for name, value in schema.get("properties", {}).items():
        yield from _described(value, f"{path}.{name}" if path else name)
    if "items" in schema:
        yield from _described(schema["items"], f"{path}[]")
