"""The job's `checks`: SQL predicates over the answers, counted when these are published. No row is changed by one."""

from collections.abc import Mapping
from typing import Any

from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dolly_batch.errors import ConfigError
from dolly_batch.spark.causes import cause
from dolly_batch.spark.tables.columns import no_rows, quoted_path
from dolly_batch.spark.tables.output import OutputTable

CHECKED = ("ok", "truncated", "empty_response")
"""The statuses of answers."""


def check_predicates(target: OutputTable) -> None:
    """Raise ConfigError, naming the check, for one that is no predicate over the columns of the output."""
    if not target.job.checks:
        return
    nothing = no_rows(target.spark, target.schema)
    for name, predicate in target.job.checks.items():
        try:
            _ = nothing.filter(F.expr(predicate)).schema
        except PySparkException as error:
            raise ConfigError(f"checks.{name}: {cause(error)}") from error


def count_failures(target: OutputTable, rows: DataFrame) -> dict[str, object]:
    """Facts for the report: how many answers of these output rows fail each check; one that is null fails too.

    A check that a value stops (a cast, a division) stops no run: its rows are published by then. It is named.
    """
    answers = rows.filter(F.col(quoted_path(target.output_name("status"))).isin(*CHECKED))
    try:
        counted = _counted(answers, target.job.checks)
    except PySparkException:
        return {"num_checked_rows": answers.count(), **_one_by_one(answers, target.job.checks)}
    num_rows = counted.pop("")
    return {"num_checked_rows": num_rows, "checks": counted}


def _one_by_one(answers: DataFrame, checks: Mapping[str, str]) -> dict[str, object]:
    failed, faults = dict[str, int](), dict[str, str]()
    for name, predicate in checks.items():
        try:
            failed[name] = _counted(answers, {name: predicate})[name]
        except PySparkException as error:
            faults[name] = cause(error)
    return {"checks": failed, "check_faults": faults}


def _counted(answers: DataFrame, checks: Mapping[str, str]) -> dict[str, int]:
    """Rows that fail each check; all rows by the name of none."""
    counts: list[Column] = [F.count("*"), *(F.count(F.when(_fails(text), True)) for text in checks.values())]
    numbers: tuple[Any, ...] = answers.agg(*counts).collect()[0]
    return dict(zip(["", *checks], numbers, strict=True))


def _fails(predicate: str) -> Column:
    return ~F.coalesce(F.expr(predicate), F.lit(False))
