"""The input: read once, as it was when the plan began, with its columns checked."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from dolly_batch.config.job import JobConfig
from dolly_batch.config.tables import InputConfig, ReadableTable
from dolly_batch.errors import InputError
from dolly_batch.spark.causes import cause, file_of, is_of_data, of_a_disk
from dolly_batch.spark.files import plain_name
from dolly_batch.spark.plan.keys import row_key
from dolly_batch.spark.tables.columns import ColumnRef, resolve_column
from dolly_batch.spark.tables.formats import input_format
from dolly_batch.tasks import KINDS

UNREADABLE = re.compile(r"\[(?:MALFORMED|CANNOT_PARSE|FAILED_READ_FILE|PARQUET|CANNOT_READ)[A-Z_.]*\]|TextParsing")


@dataclass(frozen=True)
class InputTable:
    """The input table, before any row of it is read: what the job's columns are called and typed."""

    df: DataFrame
    ids: tuple[ColumnRef, ...]
    kept: tuple[ColumnRef, ...]
    values: tuple[ColumnRef, ...]
    """What stands in the instruction: a column, those of a template, or nothing where it is the same for all."""
    context: ColumnRef | None
    """The row's context; for tasks that read one text, that text."""
    version: int | None
    """The pinned version of a Delta input."""
    opened_at: datetime
    """When the version was pinned, or the table of the catalog or the files were opened."""
    gold: ColumnRef | None = None
    """The gold labels of a cascade."""
    is_files: bool = False

    def read_from_now(self) -> "InputTable":
        """The same; files, which have no versions, are as old as their first reading."""
        return replace(self, opened_at=datetime.now(UTC)) if self.is_files and self.version is None else self


def open_input(spark: SparkSession, job: JobConfig) -> InputTable:
    """Open the input and find its columns.

    Raises InputError, which names the column or the path and what was found there, for all that can be seen without
    reading rows: a table or column that is not there, a type that cannot be used.
    """
    (df, version), opened_at = read_table(spark, job.input, "input"), datetime.now(UTC)
    instead = missing_column(job.input)
    if job.input.where is not None:
        df = _filtered(df, job.input.where, instead)
    find = partial(resolve_column, df, instead=instead)
    ids = tuple(find(name, "input.id") for name in job.input.id_columns)
    if ids:
        row_key(ids)
    kept = tuple(find(name, "output.keep") for name in job.output.keep)
    values, context = _read_columns(find, job)
    cascade = job.task.cascade
    gold = None if cascade is None or cascade.gold is None else find(cascade.gold, "task.cascade.gold")
    return InputTable(df, ids, kept, values, context, version, opened_at, gold, job.input.table is None)


def _read_columns(
    find: Callable[[str, str], ColumnRef], job: JobConfig
) -> tuple[tuple[ColumnRef, ...], ColumnRef | None]:
    """The columns that make a row's question: those of its instruction, and its context or text."""
    kind = KINDS[job.task.kind]
    if kind.reads_text:
        return (), _text(find(job.input.text, "input.text"), "input.text")
    context = None
    if job.input.context is not None:
        context = _text(find(job.input.context, "input.context"), "input.context")
    named = kind.template_columns(job.task)
    if named is not None:
        return tuple(find(name, "task.template") for name in named), context
    return (_text(find(job.input.instruction, "input.instruction"), "input.instruction"),), context


def input_files(df: DataFrame, config: InputConfig) -> Sequence[str]:
    """The files that the input is read from."""
    with unreadable_input_named(config):
        return df.inputFiles()


def read_table(spark: SparkSession, config: ReadableTable, key: str) -> tuple[DataFrame, int | None]:
    """Open a table, and return its version where its format pins one. `key` names it in the InputError if it fails."""
    try:
        if config.table is not None:
            return spark.table(config.table), None
        with unreadable_input_named(config, key):
            return input_format(str(config.format)).read(spark, config, key)
    except PySparkException as error:
        raise InputError(f"{key} {config.name} cannot be read: {_said(error, config, key) or cause(error)}") from error


def missing_column(config: ReadableTable, key: str = "input") -> str | None:
    """What to say of a column that is not there, instead of the names that are; None where those may be told."""
    return None if config.format is None else input_format(config.format).missing(config, key)


def _filtered(df: DataFrame, where: str, instead: str | None) -> DataFrame:
    try:
        filtered = df.filter(F.expr(where))
        _ = filtered.schema  # Spark Connect finds faults only when asked for the schema
    except PySparkException as error:
        unknown = instead is not None and (error.getCondition() or "").startswith("UNRESOLVED_COLUMN")
        raise InputError(f"input.where: {f'no such column; {instead}' if unknown else cause(error)}") from error
    return filtered


def _text(chosen: ColumnRef, key: str) -> ColumnRef:
    if chosen.is_text:
        return chosen
    raise InputError(
        f"{key}: column `{chosen.name}` is {chosen.type.simpleString()}, and must be string; "
        "cast it in a view or a query before this job"
    )


@contextmanager
def unreadable_input_named(config: ReadableTable, key: str = "input") -> Iterator[None]:
    """Turn a fault of reading rows into an InputError. Of a record that cannot be parsed nothing is repeated.

    Spark raises these from inside a task, where no class tells them apart; their condition names do.
    """
    try:
        yield
    except (PySparkException, Py4JError) as error:
        if of_a_disk(error):
            raise
        if (fails := is_of_data(error)) and isinstance(config, InputConfig) and config.where is not None:
            raise InputError(f"input.where fails on a row: {cause(error)}") from error
        if not fails and UNREADABLE.search(str(error)) is None:
            raise
        raise InputError(f"{key} {config.name} cannot be read to its end: {_fault(error, config, key)}") from error


def _fault(error: Exception, config: ReadableTable, key: str) -> str:
    """The file that could not be read and why, in words where the format has some for it."""
    said = _said(error, config, key)
    reason = said or f"{cause(error)}; check {key}.format, {key}.schema and {key}.options against the files"
    file = file_of(error)
    return f"{plain_name(file)}: {reason}" if file is not None else reason


def _said(error: Exception, config: ReadableTable, key: str) -> str | None:
    """What the format has to say of an error, None where it knows nothing."""
    faults = {} if config.format is None else input_format(config.format).faults
    return next((text.format(key=key) for sign, text in faults.items() if sign in str(error)), None)
