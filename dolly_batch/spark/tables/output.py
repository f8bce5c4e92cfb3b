"""The output as it stands: whether it can take this job's rows, and which of them it holds already."""

from dataclasses import dataclass
from functools import partial

from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from dolly_batch.config.job import JobConfig
from dolly_batch.errors import OutputError
from dolly_batch.spark.causes import reason
from dolly_batch.spark.files import Files, files_for
from dolly_batch.spark.plan.keys import NULL_KEY, row_key
from dolly_batch.spark.tables.base import OutputFormat
from dolly_batch.spark.tables.columns import (
    ColumnRef,
    answer_fields,
    output_name,
    output_schema,
    quoted_path,
    schema_difference,
)
from dolly_batch.spark.tables.formats import output_format, output_formats
from dolly_batch.spark.tables.input import InputTable, input_files
from dolly_batch.spark.tables.partitions import check_partition_columns
from dolly_batch.spark.tables.places import name_parts, refuse_overlaps


@dataclass(frozen=True)
class OutputTable:
    """Where a job's rows go, opened and checked."""

    spark: SparkSession
    job: JobConfig
    schema: T.StructType
    num_ids: int
    path: str | None
    """The output's folder made absolute, None for a catalog table."""
    files: Files | None

    @property
    def format(self) -> OutputFormat:
        """How it is read and written."""
        return output_format(self.job.output.format)

    @property
    def id_names(self) -> list[str]:
        """The output's id columns (`row_key` where the input has no id)."""
        return self.schema.names[: max(1, self.num_ids)]

    @property
    def kept_names(self) -> list[str]:
        """The output's kept columns."""
        return self.schema.names[max(1, self.num_ids) : -len(answer_fields(self.job))]

    def input_columns(self) -> list[Column]:
        """The output's id and kept columns, of planned rows."""
        ids = [f"id_{i}" for i in range(self.num_ids)] or ["row_key"]
        inner = [*ids, *(f"keep_{i}" for i in range(len(self.kept_names)))]
        names = [*self.id_names, *self.kept_names]
        return [F.col(column).alias(name) for column, name in zip(inner, names, strict=True)]

    def output_name(self, name: str) -> str:
        """The output's name of one of our own columns."""
        return output_name(self.job, name)

    def exists(self) -> bool:
        """Whether there is a table yet."""
        return self.read() is not None

    def read(self) -> DataFrame | None:
        """The table as it is now, None where there is none yet. Raises OutputError when it is something else."""
        if self.path is None or self.files is None:
            name = str(self.job.output.table)
            return self.spark.table(name) if self.spark.catalog.tableExists(name) else None
        if self.files.exists(self.files.resolved(self.path)) and not self.files.is_folder(self.path):
            raise OutputError(f"output {self.path} is there and is no folder; name a folder")
        names = self.files.list_names(self.path)
        for other in output_formats():
            if other.name != self.format.name and other.has_log(self.files, self.path, names):
                raise OutputError(f"output {self.path}: output.format is {self.format.name}, and it is {other.title}")
        try:
            return self.format.read_output(self, self.files, self.path)
        except PySparkException as error:
            raise OutputError(f"output {self.path} cannot be read: {reason(error)}") from error

    def key_rows(self, table: DataFrame, with_text: bool) -> DataFrame:
        """(row_key, request_key, attempt, status, num_tokens, text, plan_id) of the rows that it holds.

        `text` is the response of a truncated row, if asked for.
        """
        names = ("request_key", "attempt", "status", "num_completion_tokens", "response", "plan_id")
        request_key, attempt, status, num_tokens, response, plan_id = (
            F.col(quoted_path(self.output_name(name))) for name in names
        )
        text = F.when(status == "truncated", response) if with_text else F.lit(None)
        return table.select(
            self.row_key().alias("row_key"),
            request_key.alias("request_key"),
            attempt.alias("attempt"),
            status.alias("status"),
            num_tokens.alias("num_tokens"),
            text.cast("string").alias("text"),
            plan_id.alias("plan_id"),
        )

    def row_key(self) -> Column:
        """The row key of an output row, from its own columns."""
        if self.num_ids == 0:
            return F.col(quoted_path(self.output_name("row_key")))
        fields = self.schema.fields[: self.num_ids]
        key = row_key([ColumnRef(F.col(quoted_path(field.name)), field.name, field.dataType) for field in fields])
        return F.coalesce(key, F.lit(NULL_KEY))

    def destination(self) -> str:
        """Where and how the rows go, as text: a plan is resumed only for the same."""
        output = self.job.output
        columns = ",".join(self.schema.names)
        folders = f" by {','.join(map(str.lower, output.partition_by))}" if output.partition_by else ""
        return f"{output.format} {self.path or output.table} {output.mode} {columns}{folders}"


def open_output(spark: SparkSession, job: JobConfig, source: InputTable) -> OutputTable:
    """Open the output and check that it can take the job's rows.

    Raises OutputError for a column that collides, a table of another schema (with the difference), a table of
    another task, or an output that is (or lies in, or holds) the input. Nothing is written.
    """
    if job.output.table is not None:
        name_parts(job.output.table)
    target = output_of(spark, job, output_schema(job, source.ids, source.kept), len(source.ids))
    check_partition_columns(job, target.schema)
    try:
        refuse_overlaps(spark, target, partial(input_files, source.df, job.input))
        table = target.read()
    except AnalysisException as error:
        raise OutputError(f"output {job.output.name}: {reason(error)}") from error
    if table is not None:
        case_counts = str(spark.conf.get("spark.sql.caseSensitive", "false")).lower() == "true"
        difference = schema_difference(target.schema, table.schema, case_counts)
        if difference:
            lines = "\n".join(f"  {line}" for line in difference)
            raise OutputError(
                f"output {job.output.name} has another schema than this job writes:\n{lines}\n"
                "write to another output, or change id, output.keep or output.prefix to fit"
            )
    else:
        target.format.check_new_table(target)
    return target


def output_of(spark: SparkSession, job: JobConfig, schema: T.StructType, num_ids: int) -> OutputTable:
    """The job's output, with the schema it was planned with."""
    path, files = None, None
    if job.output.path is not None:
        files, path = files_for(spark, job.output.path)
    return OutputTable(spark, job, schema, num_ids, path, files)
