"""The input: read once, as it was when the plan began, with its columns checked."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from py4j.protocol import Py4JError
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from dolly_batch.config.job import InputConfig, JobConfig, ReadableTable
from dolly_batch.errors import InputError
from dolly_batch.spark.plan.keys import row_key
from dolly_batch.spark.tables.columns import ColumnRef, resolve_column
from dolly_batch.spark.tables.formats import input_format
from dolly_batch.tasks import KINDS

UNREADABLE = re.compile(r"\[((?:MALFORMED|CANNOT_PARSE|FAILED_READ_FILE|PARQUET|CANNOT_READ)[A-Z_.]*)\]")


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


def open_input(spark: SparkSession, job: JobConfig) -> InputTable:
    """Open the input and find its columns.

    Raises InputError, which names the column or the path and what was found there, for all that can be seen without
    reading rows: a table or column that is not there, a type that cannot be used.
    """
    df, version = read_table(spark, job.input, "input")
    if job.input.where is not None:
        df = _filtered(df, job.input.where)
    ids = tuple(resolve_column(df, name, "input.id") for name in job.input.id_columns)
    if ids:
        row_key(ids)
    kept = tuple(resolve_column(df, name, "output.keep") for name in job.output.keep)
    values, context = _read_columns(df, job)
    return InputTable(df, ids, kept, values, context, version)


def _read_columns(df: DataFrame, job: JobConfig) -> tuple[tuple[ColumnRef, ...], ColumnRef | None]:
    """The columns that make a row's question: those of its instruction, and its context or text."""
    kind = KINDS[job.task.kind]
    if kind.reads_text:
        return (), _text(resolve_column(df, job.input.text, "input.text"), "input.text")
    context = None
    if job.input.context is not None:
        context = _text(resolve_column(df, job.input.context, "input.context"), "input.context")
    named = kind.template_columns(job.task)
    if named is not None:
        return tuple(resolve_column(df, name, "task.template") for name in named), context
    return (_text(resolve_column(df, job.input.instruction, "input.instruction"), "input.instruction"),), context


def input_files(df: DataFrame, config: InputConfig) -> Sequence[str]:
    """The files that the input is read from."""
    try:
        return df.inputFiles()
    except PySparkException as error:
        raise InputError(f"input {config.name} cannot be read: {_reason(error)}") from error


def read_table(spark: SparkSession, config: ReadableTable, key: str) -> tuple[DataFrame, int | None]:
    """Open a table, and return its version where its format pins one. `key` names it in the InputError if it fails."""
    try:
        if config.table is not None:
            return spark.table(config.table), None
        return input_format(str(config.format)).read(spark, config, key)
    except PySparkException as error:
        raise InputError(f"{key} {config.name} cannot be read: {_reason(error)}") from error


def _filtered(df: DataFrame, where: str) -> DataFrame:
    try:
        filtered = df.filter(F.expr(where))
        _ = filtered.schema  # Spark Connect finds faults only when asked for the schema
    except AnalysisException as error:
        raise InputError(f"input.where: {_reason(error)}") from error
    return filtered


def _text(chosen: ColumnRef, key: str) -> ColumnRef:
    if isinstance(chosen.type, (T.StringType, T.VarcharType, T.CharType)):
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
        found = UNREADABLE.search(str(error))
        if found is None:
            raise
        raise InputError(
            f"{key} {config.name} cannot be read to its end: [{found[1]}]; check {key}.format, {key}.schema and "
            f"{key}.options against the files"
        ) from error


def _reason(error: PySparkException) -> str:
    """Spark's message without the plan that it appends, and never the content of a record."""
    condition = error.getCondition() or ""
    if "MALFORMED" in condition or "CANNOT_PARSE" in condition:
        return f"[{condition}] a record does not have the columns of the schema"
    return str(error).split("\n")[0].split(";\n")[0].strip()
