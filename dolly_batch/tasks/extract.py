"""Extract: the model's answer is held to a schema, token by token, so that it is valid JSON or ends too early."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dolly_batch.records import Completion, GenerationParams, PromptRow, Row, Scores
from dolly_batch.tasks.base import Answer, Subject
from dolly_batch.tasks.generate import completion_of, read_answer


@dataclass(frozen=True)
class Extract:
    """One question a row; `grammar` is the schema's text, as `Request.grammar` takes it."""

    params: GenerationParams
    grammar: str

    def begin(self, subject: Subject) -> "ExtractWork":
        """The work of one row."""
        return ExtractWork(self, subject)

    def prepare(self) -> Sequence[Row]:
        """Nothing is asked beforehand."""
        return ()

    def prepared(self, answers: Sequence[Completion | Scores]) -> "Extract":
        """The task as it is."""
        return self


@dataclass(frozen=True, slots=True)
class ExtractWork:
    """One row: asked once."""

    task: Extract
    subject: Subject

    def start(self) -> Sequence[Row]:
        """The one question."""
        row = self.subject
        return (PromptRow("0", row.instruction, row.context, self.task.params, row.seed, "dolly", self.task.grammar),)

    def take(self, answer: Completion | Scores) -> Answer:
        """The object as JSON text. Cut off by `max_new_tokens` it is no object: the response is null."""
        completion = completion_of(answer)
        read = read_answer(completion)
        num_tokens = read.num_completion_tokens
        if read.status == "truncated":
            message = f"the object was not complete after {num_tokens} tokens"
            return Answer(None, "truncated", message, read.finish_reason, num_tokens)
        if read.response is None:
            return read
        value = parse_object(read.response)
        if value is None:
            return Answer(None, "invalid_output", "the answer is not a JSON object", read.finish_reason, num_tokens)
        return Answer(value, "ok", None, read.finish_reason, num_tokens)


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
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))


def default_instruction(schema: Mapping[str, Any]) -> str:
    """What is asked where the job says nothing: the fields by name, with the descriptions that the schema holds."""
    names = [*schema["properties"]]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"Extract the fields {listed} and answer with JSON only."
