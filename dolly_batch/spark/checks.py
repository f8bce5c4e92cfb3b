"""The job's `checks`: SQL predicates over the answers, counted when these are published. No row is changed by one."""

import re
from collections.abc import Mapping
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.errors import AnalysisException, IllegalArgumentException, PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from dolly_batch.errors import ConfigError
from dolly_batch.spark.causes import cause
from dolly_batch.spark.tables.columns import quoted_path
from dolly_batch.spark.tables.output import OutputTable

CHECKED = ("ok", "truncated", "empty_response")
"""The statuses of answers."""
_Fault = (PySparkException, Py4JJavaError)
# Faults of a predicate itself, whatever row it meets first.
_OF_PREDICATE = re.compile(r"INVALID_PARAMETER_VALUE|INVALID_DATETIME_PATTERN|PatternSyntaxException")


def check_predicates(target: OutputTable) -> None:
    """Raise ConfigError, naming the check, for one that is no predicate over the columns of the output.

    Each is tried on one made-up row: Spark finds some faults, in patterns above all, only when it meets a value.
    """
    for name, predicate in target.job.checks.items():
        try:
            _ = _one_row(target).filter(F.expr(predicate)).schema
            _counted(_one_row(target), {name: predicate})
        except _Fault as error:
            if _is_of_predicate(error):
                raise ConfigError(f"checks.{name}: {cause(error)}") from error


def _is_of_predicate(error: Exception) -> bool:
    """Whether it would fail on any row. Faults of values have a condition, those of patterns not always."""
    bare = isinstance(error, IllegalArgumentException) and not error.getCondition()
    return isinstance(error, AnalysisException) or bare or _OF_PREDICATE.search(str(error)) is not None


def count_failures(target: OutputTable, rows: DataFrame) -> dict[str, object]:
    """Facts for the report: how many answers of these output rows fail each check; one that is null fails too.

    A check that a value stops (a cast, a division) stops no run: its rows are published by then. It is named.
    """
    answers = rows.filter(F.col(quoted_path(target.output_name("status"))).isin(*CHECKED))
    try:
        counted = _counted(answers, target.job.checks)
    except _Fault:
        return {"num_checked_rows": answers.count(), **_one_by_one(answers, target.job.checks)}
    num_rows = counted.pop("")
    return {"num_checked_rows": num_rows, "checks": counted}


def _one_row(target: OutputTable) -> DataFrame:
    return target.spark.range(1).select(*(_some(field.dataType).alias(field.name) for field in target.schema))


def _some(kind: T.DataType) -> Column:
    """A value of a type; null of those that are made of others."""
    values = {T.StringType: F.lit("a"), T.NumericType: F.lit(1), T.TimestampType: F.current_timestamp()}
    return next((value for known, value in values.items() if isinstance(kind, known)), F.lit(None)).cast(kind)


def _one_by_one(answers: DataFrame, checks: Mapping[str, str]) -> dict[str, object]:
    failed, faults = dict[str, int](), dict[str, str]()
    for name, predicate in checks.items():
        try:
            failed[name] = _counted(answers, {name: predicate})[name]
        except _Fault as error:
            faults[name] = cause(error) or type(error).__name__
    return {"checks": failed, "check_faults": faults}


def _counted(answers: DataFrame, checks: Mapping[str, str]) -> dict[str, int]:
    """Rows that fail each check; all rows by the name of none."""
    flags = [_fails(text).alias(f"fails_{i}") for i, text in enumerate(checks.values())]
    counts: list[Column] = [F.count("*"), *(F.count(F.when(F.col(f"fails_{i}"), True)) for i in range(len(flags)))]
    numbers: tuple[Any, ...] = answers.select(*flags).agg(*counts).collect()[0]
    return dict(zip(["", *checks], numbers, strict=True))


def _fails(predicate: str) -> Column:
    return ~F.coalesce(F.expr(predicate), F.lit(False))
