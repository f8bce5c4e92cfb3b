"""The modules that read and write the table formats of `config/formats.py`, by the format's name."""

from importlib import import_module
from typing import TYPE_CHECKING

from dolly_batch.config.formats import FORMATS

if TYPE_CHECKING:
    from dolly_batch.spark.tables.base import InputFormat, OutputFormat


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
