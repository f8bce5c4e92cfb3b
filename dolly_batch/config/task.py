"""What a job asks of the model for each row: one section per kind of task, told apart by `kind`."""

import re
import string
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from dolly_batch.config.section import Section

MIN_LABELS, MAX_LABELS = 2, 500


class Example(Section):
    """One worked example, shown to the model before the row's own question."""

    instruction: str = Field(min_length=1)
    context: str | None = None
    response: str = Field(min_length=1)


class GenerateTask(Section):
    """Answer an instruction: a column's, or one made from a template over any columns.

    In `template`, `{column}` stands for a column's value, `{{` and `}}` for braces. Braces in the values are data.
    """

    kind: Literal["generate"] = "generate"
    template: str | None = None
    examples: list[Example] = Field(default=[], max_length=32)

    @field_validator("template")
    @classmethod
    def _can_be_parsed(cls, value: str | None) -> str | None:
        if value is not None and not template_parts(value)[1]:
            raise ValueError("names no column: `{column}` stands for a column's value")
        return value


class ClassifyTask(Section):
    """Choose one of the labels, by how likely the model is to write each as its response.

    `labels` is a list, or a mapping of each label to its description. `none_below` gives null under that confidence.
    `instruction` replaces the default one, which lists the labels.
    """

    kind: Literal["classify"]
    labels: list[str] | dict[str, str]
    instruction: str | None = Field(default=None, min_length=1)
    none_below: float | None = Field(default=None, ge=0, le=1)
    normalization: Literal["sum", "per_token", "per_char"] = "sum"
    calibration: Literal["none", "contextual"] = "none"
    with_end: bool = True
    """Score each label with its end marker, so that no label wins by being the beginning of another."""

    @field_validator("labels")
    @classmethod
    def _can_be_told_apart(cls, value: list[str] | dict[str, str]) -> list[str] | dict[str, str]:
        names = [*value]
        if not MIN_LABELS <= len(names) <= MAX_LABELS:
            raise ValueError(f"{len(names)} labels; give {MIN_LABELS} to {MAX_LABELS}")
        if any(name != name.strip() or not name for name in names):
            raise ValueError("a label is empty, or begins or ends with white space")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"label `{twice[0]}` is given twice")
        return value


class SummarizeTask(Section):
    """Summarize a text of any length, in one sentence or in bullets, of about `max_words` words."""

    kind: Literal["summarize"]
    max_words: int | None = Field(default=None, ge=3)
    style: Literal["sentence", "bullets"] = "sentence"
    instruction: str | None = Field(default=None, min_length=1)


class ExtractTask(Section):
    """Extract fields as a struct. `schema` is Spark DDL (`name STRING, age INT`) or a JSON Schema of an object.

    `max_chars` and `max_items` bound strings and arrays that the schema does not bound itself; by default they are
    chosen so that the longest answer fits `generation.max_new_tokens` at two characters a token.
    """

    kind: Literal["extract"]
    columns: str | dict[str, Any] = Field(alias="schema")
    instruction: str | None = Field(default=None, min_length=1)
    max_chars: int | None = Field(default=None, ge=1)
    max_items: int | None = Field(default=None, ge=1)


TaskConfig = Annotated[GenerateTask | ClassifyTask | SummarizeTask | ExtractTask, Field(discriminator="kind")]
KINDS: dict[str, type[Section]] = {
    "generate": GenerateTask,
    "classify": ClassifyTask,
    "summarize": SummarizeTask,
    "extract": ExtractTask,
}
TEXT_KINDS = ("classify", "summarize", "extract")
"""The tasks that read one column of text, `input.text`."""


def template_parts(template: str) -> tuple[list[str], list[str]]:
    """Split a template into its literal texts and the columns between them; there is one text more than columns.

    Raises ValueError for a brace that stands alone, and for formats and conversions, which have no meaning here.
    """
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{error}; write {{{{ and }}}} for braces") from error
    texts, names = [""], []
    for text, name, spec, conversion in parsed:
        if name is not None and (spec or conversion or not re.fullmatch(r"[^{}]+", name)):
            raise ValueError(f"`{{{name}}}` must hold a column's name alone; write {{{{ and }}}} for braces")
        texts[-1] += text  # an escaped brace ends a text for the parser, and not for us
        if name is not None:
            names.append(name)
            texts.append("")
    return texts, names
