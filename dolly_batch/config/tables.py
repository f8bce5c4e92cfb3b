"""The tables that a job file names: where they lie, which columns are read, and how answers are written."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from dolly_batch.config.formats import FORMATS, listed
from dolly_batch.config.yaml_file import NamePart, PathText, Section


class TableConfig(Section):
    """A table, by `path` and `format` or by catalog name."""

    path: PathText | None = None
    table: str | None = None

    @model_validator(mode="after")
    def _names_one_table(self) -> "TableConfig":
        if (self.path is None) == (self.table is None):
            raise ValueError("give exactly one of `path` and `table`")
        return self

    @property
    def name(self) -> str:
        """The path or the catalog name, for messages."""
        return self.path or self.table or ""


class ReadableTable(TableConfig):
    """A table to be read. CSV and JSON are read as strings, or by `schema` (Spark DDL); types are never inferred."""

    format: str | None = None
    columns: str | None = Field(default=None, alias="schema")
    """Spark DDL of a CSV or JSON table (key `schema`)."""
    options: dict[str, str] = Field(default={})

    @field_validator("format")
    @classmethod
    def _can_be_read(cls, value: str | None) -> str | None:
        return value if value is None else _one_of(value, list(FORMATS))

    @model_validator(mode="after")
    def _has_a_format(self) -> "ReadableTable":
        if self.path is not None and self.format is None:
            raise ValueError(f"`format` is needed with `path`: {listed(FORMATS)}")
        if self.columns is not None and (self.format is None or not FORMATS[self.format].takes_schema):
            names = [name for name, facts in FORMATS.items() if facts.takes_schema]
            raise ValueError(f"`schema` is for {listed(names, 'and')} tables")
        return self

    @property
    def is_text(self) -> bool:
        """Whether its files are text, whose bytes may not be what they are read as."""
        return self.format is not None and FORMATS[self.format].takes_schema


class InputConfig(ReadableTable):
    """The table of instructions.

    `id` is one column or several; without it rows are identified by their content and by how often it occurs.
    """

    id: str | list[str] | None = None
    instruction: str = "instruction"
    context: str | None = None
    text: str = "text"
    """The column that classify, summarize and extract read; they read no instruction and no context."""
    where: str | None = None
    on_bad_id: Literal["refuse", "status"] = "refuse"
    """Duplicate or null ids: refuse the run, or give those rows the status `duplicate_id`."""

    @property
    def id_columns(self) -> tuple[str, ...]:
        """The id columns, empty when there are none."""
        if self.id is None:
            return ()
        return (self.id,) if isinstance(self.id, str) else tuple(self.id)

    @model_validator(mode="after")
    def _has_different_ids(self) -> "InputConfig":
        if len(set(self.id_columns)) != len(self.id_columns) or self.id == []:
            raise ValueError("`id` must name one or more different columns")
        return self


class WritableTable(TableConfig):
    """A table to be written."""

    format: str = "delta"

    @field_validator("format")
    @classmethod
    def _can_be_written(cls, value: str) -> str:
        return _one_of(value, [name for name, facts in FORMATS.items() if facts.modes])

    @model_validator(mode="after")
    def _can_be_in_catalog(self) -> "WritableTable":
        if self.table is not None and not FORMATS[self.format].in_catalog:
            names = [name for name, other in FORMATS.items() if other.in_catalog]
            raise ValueError(f"a catalog table is written as `format: {listed(names)}`; {self.format} needs `path`")
        return self


class RejectedConfig(WritableTable):
    """A second table, to which each run adds a copy of its rows with an error status."""


class OutputConfig(WritableTable):
    """The table of answers.

    `keep` names input columns to carry over; `prefix` is put before our own columns, for one that collides with these.
    `target_file_mb` is the size aimed at. `reuse_answers` copies what the output answers already for another row.
    """

    mode: Literal["append", "overwrite", "merge"] = "append"
    keep: list[str] = Field(default=[])
    partition_by: list[str] = Field(default=[])
    target_file_mb: int = Field(default=128, ge=1)
    reuse_answers: bool = True
    prefix: NamePart = ""
    rejected: RejectedConfig | None = None

    @model_validator(mode="after")
    def _can_be_published(self) -> "OutputConfig":
        facts = FORMATS[self.format]
        if self.mode not in facts.modes:
            names = [name for name, other in FORMATS.items() if self.mode in other.modes]
            raise ValueError(
                f"mode {self.mode} needs `format: {listed(names)}`; {self.format} has {listed(facts.modes)}"
            )
        return self


def _one_of(value: str, valid: list[str]) -> str:
    if value not in valid:
        raise ValueError(f"must be {listed(valid)}")
    return value
