"""The output as it stands: whether it can take this job's rows, and which of them it holds already."""

import os
import posixpath
from dataclasses import dataclass
from urllib.parse import unquote, urlparse

from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from dolly_batch.config.job import JobConfig
from dolly_batch.errors import OutputError
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
        names = self.files.list_names(self.path)
        for other in output_formats():
            if other.name != self.format.name and other.has_log(self.files, self.path, names):
                raise OutputError(f"output {self.path}: output.format is {self.format.name}, and it is {other.title}")
        try:
            return self.format.read_output(self, self.files, self.path)
        except PySparkException as error:
            raise OutputError(f"output {self.path} cannot be read: {str(error).splitlines()[0]}") from error

    def existing_rows(self, table: DataFrame, with_text: bool) -> DataFrame:
        """(row_key, request_key, held) of the rows it holds, one each, the latest attempt where there are several.

        `held` is a struct of status, attempt, num_tokens, and text: the response of a truncated row, if asked for.
        """
        attempt, status, num_tokens = (
            F.col(self.output_name(n)) for n in ("attempt", "status", "num_completion_tokens")
        )
        text = F.when(status == "truncated", F.col(self.output_name("response"))) if with_text else F.lit(None)
        values = {"attempt": attempt, "status": status, "num_tokens": num_tokens, "text": text.cast("string")}
        keys = table.select(
            self.row_key().alias("row_key"),
            F.col(self.output_name("request_key")).alias("request_key"),
            F.struct(*(value.alias(name) for name, value in values.items())).alias("held"),
        )
        return keys.groupBy("row_key", "request_key").agg(F.max("held").alias("held"))

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
        return f"{output.format} {self.path or output.table} {output.mode} {','.join(f.name for f in self.schema)}"


def open_output(spark: SparkSession, job: JobConfig, source: InputTable) -> OutputTable:
    """Open the output and check that it can take the job's rows.

    Raises OutputError for a column that collides, a table of another schema (with the difference), a table of
    another task, or an output that is (or lies in, or holds) the input. Nothing is written.
    """
    target = output_of(spark, job, output_schema(job, source.ids, source.kept), len(source.ids))
    _refuse_input_as_output(spark, target, input_files(source.df, job.input))
    try:
        table = target.read()
    except AnalysisException as error:
        raise OutputError(f"output {job.output.name}: {str(error).splitlines()[0]}") from error
    if table is not None:
        difference = schema_difference(target.schema, table.schema)
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


def _refuse_input_as_output(spark: SparkSession, target: OutputTable, inputs: object) -> None:
    location = target.path or _location(spark, str(target.job.output.table))
    if location is None:
        return
    output = _real(location)
    for file in list(inputs):  # type: ignore[call-overload]
        source = _real(file)
        if source == output or source.startswith(output + "/"):
            raise OutputError(f"the output {target.job.output.name} holds the input's files; name another folder")
    configured = target.job.input.path
    if configured is not None:
        root = _real(files_for(spark, configured)[1])
        if output == root or output.startswith(root + "/"):
            raise OutputError(f"the output {target.job.output.name} lies in the input's folder; name another one")


def _location(spark: SparkSession, table: str) -> str | None:
    """Where a catalog table's files lie, None for one that does not exist yet."""
    if not spark.catalog.tableExists(table):
        return None
    rows = spark.table(table).inputFiles()
    return posixpath.dirname(rows[0]) if rows else None


def _real(path: str) -> str:
    """A path with its links, `//` and `..` resolved where this process can see it, else normalised as text."""
    parsed = urlparse(path)
    if parsed.scheme in ("", "file"):
        return os.path.realpath(unquote(parsed.path) if parsed.scheme else path)
    return f"{parsed.scheme}://{parsed.netloc}{posixpath.normpath(parsed.path)}"
