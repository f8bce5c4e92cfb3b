"""What a Delta table that is there demands of its rows and of those who write to it."""

import re
from dataclasses import dataclass
from typing import Any

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dolly_batch.errors import OutputError
from dolly_batch.spark.session.session import is_connect
from dolly_batch.spark.tables.columns import quoted_path
from dolly_batch.spark.tables.output import OutputTable
from dolly_batch.spark.tables.partitions import partition_names

CONSTRAINT = "delta.constraints."
NEVER_NULL = ("row_key", "status", "request_key", "plan_id", "attempt", "model", "created_at")
VIOLATED = re.compile(r"(?:CHECK|NOT NULL) constraint (?:violated for column: )?([^\n(]+?)(?: \(|\.? *$)", re.MULTILINE)


@dataclass(frozen=True)
class TableRules:
    """The table, its partition columns and its properties."""

    table: Any
    not_null: set[str]
    """Columns that are NOT NULL, in small letters."""
    partition_columns: list[str]
    properties: dict[str, str]

    @property
    def checks(self) -> dict[str, str]:
        """CHECK constraints: the SQL of each by its name."""
        return {key.removeprefix(CONSTRAINT): sql for key, sql in self.properties.items() if key.startswith(CONSTRAINT)}


def table_rules(output: OutputTable) -> TableRules | None:
    """The rules of the table; None where there is none yet, and over Spark Connect, which cannot ask for them.

    Raises OutputError where it is no Delta table.
    """
    read = None if is_connect(output.spark) else output.read()
    if read is None:
        return None
    from delta.tables import DeltaTable

    spark, name = output.spark, output.job.output.table
    try:
        by_path = name is None
        table = DeltaTable.forPath(spark, str(output.path)) if by_path else DeltaTable.forName(spark, str(name))
    except AnalysisException as error:
        raise OutputError(
            f"output {output.job.output.name} is a view, or a table of another format than Delta; name another table"
        ) from error
    not_null = {field.name.lower() for field in read.schema if not field.nullable}
    found = table.detail().select("partitionColumns", "properties").collect()[0]
    return TableRules(table, not_null, list(found[0]), dict(found[1]))


def check_rules(output: OutputTable, rules: TableRules, retries: bool) -> None:
    """Raise OutputError, or what Delta raises, for a table that this job cannot write to. Nothing is written."""
    name, mode, wanted = output.job.output.name, output.job.output.mode, partition_names(output.job, output.schema)
    if mode == "overwrite" and wanted and rules.partition_columns != wanted:
        raise OutputError(
            f"output {name} is partitioned by {rules.partition_columns or 'nothing'}, and output.partition_by says "
            f"{wanted}; make it the same, leave it out, or write to another table"
        )
    nullable = {output.output_name(key) for key in NEVER_NULL}
    for field in output.schema.fields[len(output.input_columns()) :]:
        if field.name.lower() in rules.not_null and field.name not in nullable:
            raise OutputError(
                f"output {name}: column `{field.name}` is NOT NULL, and a row without an answer has none; allow it: "
                f"ALTER TABLE ... ALTER COLUMN {quoted_path(field.name)} DROP NOT NULL"
            )
    if rules.properties.get("delta.appendOnly") != "true":
        rules.table.delete("false")  # Delta checks that it can write this table, and finds nothing to commit
    elif retries or mode != "append":
        raise OutputError(
            f"output {name} has the property delta.appendOnly, and {'--retry' if retries else f'mode {mode}'} replaces "
            "rows; use mode append, or set delta.appendOnly to false"
        )


def broken_rules(output: OutputTable, rules: TableRules, inputs: DataFrame) -> dict[str, Column]:
    """A message for each CHECK and NOT NULL of id and kept columns, and the rows that break it."""
    name, found = output.job.output.name, dict[str, Column]()
    for constraint, sql in rules.checks.items():
        try:
            inputs.select(F.expr(sql))
        except AnalysisException:
            continue  # it reads columns that are not answered yet
        message = f"output {name}: the table's CHECK constraint {constraint} forbids these rows; leave them out by "
        found[message + "input.where, or drop the constraint"] = ~F.coalesce(F.expr(sql), F.lit(False))
    for column in inputs.columns:
        if column.lower() in rules.not_null:
            message = f"output {name}: column `{column}` is NOT NULL in the table, and null in these rows; leave them "
            found[message + "out by input.where, or allow null"] = F.col(quoted_path(column)).isNull()
    return found


def violated(error: BaseException) -> str | None:
    """The name of the constraint that a commit met, None for another error. Delta quotes the row; this does not."""
    text = str(error)
    match = VIOLATED.search(text) if "CONSTRAINT" in text else None
    return match[1] if match else None
