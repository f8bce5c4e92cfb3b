"""Generate: the row's instruction and context go to the model as they are, and its answer is the text it wrote."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from dolly_batch.records import Completion, GenerationParams, PromptRow, Scores
from dolly_batch.tasks.arguments import SqlArgument
from dolly_batch.tasks.base import (
    PreparedTask,
    SettingError,
    SingleRequestRun,
    Task,
    TaskInput,
    TaskKind,
    TaskModel,
    TaskResult,
    TaskSettings,
    check_not_empty,
)

MAX_EXAMPLES = 32


@dataclass(frozen=True, kw_only=True)
class Example:
    """One worked example, shown to the model before the row's own instruction."""

    instruction: str
    context: str | None = None
    response: str

    def __post_init__(self) -> None:
        check_not_empty(self, "instruction", "response")


@dataclass(frozen=True, kw_only=True)
class GenerateSettings(TaskSettings):
    """Answer an instruction: a column's, or one made from a template over any columns.

    In `template`, `{column}` stands for a column's value, `{{` and `}}` for braces; a name with marks in it stands in
    backticks, {`like: this`}. Braces in the values are data.
    """

    kind: Literal["generate"] = "generate"
    template: str | None = None
    examples: list[Example] = field(default_factory=list)

    def __post_init__(self) -> None:
        if len(self.examples) > MAX_EXAMPLES:
            raise SettingError("examples", f"{len(self.examples)} examples; give {MAX_EXAMPLES} at most")
        if self.template is not None and not template_parts(self.template)[1]:
            raise SettingError("template", "names no column: `{column}` stands for a column's value")


class GenerateKind(TaskKind):
    """`kind: generate`, and `dolly_generate(instruction[, context])`."""

    name = "generate"
    settings = GenerateSettings
    reads_text = False
    resumes = True
    in_prompt = frozenset({"template", "examples"})
    sql_arguments = (SqlArgument("context", "text", is_column=True, is_optional=True),)

    @property
    def sql_placeholders(self) -> Mapping[str, Any]:
        """A call has no template."""
        return {"template": None}

    def prepare(self, settings: GenerateSettings, model: TaskModel, params: GenerationParams) -> PreparedTask:
        """The examples and the template's texts stand around the row's values."""
        literals: tuple[str, ...] = ("", "")
        if settings.template is not None:
            literals = tuple(template_parts(settings.template)[0])
        num_new = params.max_new_tokens
        return PreparedTask(
            task=Generate(params),
            literals=(examples_text(settings.examples) + literals[0], *literals[1:]),
            num_reserved=num_new,
            num_new_tokens=num_new,
            shares=not params.do_sample,
            reads_text=False,
        )

    def template_columns(self, settings: GenerateSettings) -> list[str] | None:
        """The columns that the template names, in its order."""
        return None if settings.template is None else template_parts(settings.template)[1]


@dataclass(frozen=True)
class Generate(Task):
    """One request a row."""

    params: GenerationParams

    def start(self, row: TaskInput) -> SingleRequestRun:
        """The run of one row."""
        params = self.params
        if row.max_new_tokens is not None:
            params = replace(params, max_new_tokens=row.max_new_tokens)
        request = PromptRow("0", row.instruction, row.context, params, row.seed, partial=row.partial)
        return SingleRequestRun(request, partial(self._read, row))

    def _read(self, row: TaskInput, result: Completion | Scores) -> TaskResult:
        """The model's text is the answer. A partial answer is kept when it cannot be resumed."""
        completion, answer = completion_of(result), row.partial
        read = read_completion(completion)
        if answer is None:
            return read
        if completion.failure is not None:
            error = f"not resumed: {completion.failure.status}, {completion.failure.message}"
            return TaskResult(answer.text, "truncated", error, "length", answer.num_tokens, num_partial_tokens=0)
        return replace(read, num_partial_tokens=completion.num_partial_tokens)


def completion_of(result: Completion | Scores) -> Completion:
    """A completion, which is what a request for text gets. Raises TypeError for anything else."""
    if not isinstance(result, Completion):
        raise TypeError(f"a request for text was answered by {type(result).__name__}")
    return result


def read_completion(completion: Completion) -> TaskResult:
    """The result in a completion. A row cut off by `max_new_tokens` is `truncated`, however little it wrote."""
    if completion.failure is not None:
        return TaskResult(None, completion.failure.status, completion.failure.message, None, None)
    if completion.finish_reason == "length":
        status = "truncated"
    else:
        status = "ok" if completion.text else "empty_response"
    return TaskResult(completion.text, status, None, completion.finish_reason, completion.num_completion_tokens)


def examples_text(examples: Sequence[Example]) -> str:
    """Worked examples as what stands before a row's own instruction; "" for none.

    The Dolly format has one instruction and one response, so examples are a part of the instruction.
    """
    if not examples:
        return ""
    blocks = [
        f"Instruction: {example.instruction}\n"
        + (f"Input: {example.context}\n" if example.context else "")
        + f"Response: {example.response}\n\n"
        for example in examples
    ]
    return "".join(blocks) + "Instruction: "


_QUOTED = r"`(?:[^`]|``)*`"
# Braces that stand for themselves; a column's name, parts of it in backticks; a brace that stands alone.
_TEMPLATE = re.compile(rf"(?P<brace>\{{\{{|\}}\}})|\{{(?P<name>(?:{_QUOTED}|[^{{}}`])+|[^{{}}]*)\}}|[{{}}]")


def template_parts(template: str) -> tuple[list[str], list[str]]:
    """Split a template into its literal texts and the columns between them; there is one text more than columns.

    Raises SettingError for a brace that stands alone, and for formats and conversions, which have no meaning here.
    """
    texts, names, end = [""], [], 0
    for match in _TEMPLATE.finditer(template):
        texts[-1] += template[end : match.start()] + (match["brace"] or "")[:1]
        end = match.end()
        if match["brace"]:
            continue
        if not (name := match["name"]):
            fault = "names no column" if match[0] == "{}" else "stands alone"
            raise SettingError("template", f"`{match[0]}` {fault}; write {{{{ and }}}} for braces")
        if re.search("[:!]", re.sub(_QUOTED, "", name)):
            quoted = name.replace("`", "``")
            message = f"`{match[0]}` must hold a column's name alone; if that is its name, write {{`{quoted}`}}"
            raise SettingError("template", message)
        names.append(name)
        texts.append("")
    texts[-1] += template[end:]
    return texts, names
