"""The table formats: what a job may ask of each, and the module that reads and writes it.

A format is a module of this folder, named like the format, whose `FORMAT` is an `InputFormat` or an `OutputFormat`
(base.py), and one line in `FORMATS`. The module is imported when a job uses the format: settings are checked by this
file alone, without pyspark.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dolly_batch.spark.tables.base import InputFormat, OutputFormat


@dataclass(frozen=True)
class FormatFacts:
    """What a job may ask of tables of one format."""

    name: str
    modes: tuple[str, ...] = ()
    """The values of `output.mode` that it can be published in; none for a format that is only read."""
    in_catalog: bool = False
    """Whether the output may be a catalog table, and not only a folder."""
    takes_schema: bool = False
    """Whether `input.schema` says the types of its columns; other formats store them."""

    @property
    def replaces_rows(self) -> bool:
        """Whether a commit can replace rows of the table, as mode merge and `--retry` do."""
        return "merge" in self.modes


_ALL = (
    FormatFacts("parquet", modes=("append", "overwrite")),
    FormatFacts("delta", modes=("append", "overwrite", "merge"), in_catalog=True),
    FormatFacts("json", takes_schema=True),
    FormatFacts("csv", takes_schema=True),
)
FORMATS = {facts.name: facts for facts in _ALL}


def input_format(name: str) -> "InputFormat":
    """How tables of this format are read."""
    implementation: InputFormat = import_module(f"dolly_batch.spark.tables.{name}").FORMAT
    return implementation


def output_format(name: str) -> "OutputFormat":
    """How tables of this format, one with modes, are read and written."""
    implementation: OutputFormat = import_module(f"dolly_batch.spark.tables.{name}").FORMAT
    return implementation


def output_formats() -> "list[OutputFormat]":
    """All formats that can be written."""
    return [output_format(name) for name, facts in FORMATS.items() if facts.modes]


def listed(names: Iterable[str], conjunction: str = "or") -> str:
    """Names as text: `a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} {conjunction} {last}" if others else last
