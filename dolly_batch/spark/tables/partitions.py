"""Partitions: values that name folders. Which columns can, which values cannot, and how they are read back."""

from typing import TYPE_CHECKING

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql import types as T

from dolly_batch.config.job import JobConfig
from dolly_batch.errors import OutputError
from dolly_batch.spark.tables.columns import output_name, quoted_path

if TYPE_CHECKING:  # it imports the session, which imports the formats, which import this
    from dolly_batch.spark.files import Files

NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"
MAX_NAME_BYTES = 255
TYPES = (
    *(T.StringType, T.BooleanType, T.ByteType, T.ShortType, T.IntegerType, T.LongType, T.FloatType, T.DoubleType),
    *(T.DecimalType, T.DateType, T.TimestampType, T.TimestampNTZType),
)
_NOT_ESCAPED = r"""[^\x01-\x1f"#%'*/:=?\\\x7f{\[\]^]"""  # Spark writes the others as %XX


def check_partition_columns(job: JobConfig, schema: T.StructType) -> None:
    """Raise OutputError for a column of `partition_by` whose values no folder can be named after."""
    free_text = {output_name(job, "error"), *([] if job.task.kind == "classify" else [output_name(job, "response")])}
    by_name = {field.name.lower(): field for field in schema.fields}
    fields = [by_name[name.lower()] for name in job.output.partition_by]
    if len({field.name for field in fields}) != len(fields):
        raise OutputError("output.partition_by: a column stands there twice")
    for field in fields:
        kind = field.dataType.simpleString()
        where = f"output.partition_by: column `{field.name}`"
        if not isinstance(field.dataType, TYPES) or "collate" in kind:
            raise OutputError(
                f"{where} is {kind}, and no folder is named after such a value; name a column of strings, "
                "numbers, booleans, dates or timestamps"
            )
        if field.name in free_text:
            raise OutputError(f"{where} holds text that the model writes, and no folder is named after that")
        if (job.output.format, job.output.mode, field.name) == ("parquet", "append", output_name(job, "plan_id")):
            raise OutputError(f"{where}: in mode append every run is such a folder already; leave it out")


def partition_names(job: JobConfig, schema: T.StructType) -> list[str]:
    """The output's own spelling of the columns of `partition_by`."""
    by_name = {name.lower(): name for name in schema.names}
    return [by_name[name.lower()] for name in job.output.partition_by]


def unfit_values(job: JobConfig, inputs: T.StructType) -> dict[str, Column]:
    """For each id and kept column of strings that the output is partitioned by: what is wrong, and in which rows."""
    names = {name.lower() for name in job.output.partition_by}
    found = {}
    for field in inputs.fields:
        if field.name.lower() in names and isinstance(field.dataType, T.StringType):
            value = F.col(quoted_path(field.name))
            num_escaped = F.length(F.regexp_replace(value, _NOT_ESCAPED, ""))
            num_bytes = F.octet_length(value) + 2 * num_escaped + len(f"{field.name}=".encode())
            message = (
                f"output.partition_by: column `{field.name}` has values that no folder can be named after (an empty "
                f"string, {NULL_FOLDER}, more than {MAX_NAME_BYTES} bytes, or not UTF-8): they would come back as "
                "null or not at all; replace them in a view, or partition by another column"
            )
            found[message] = value.isin("", NULL_FOLDER) | ~F.is_valid_utf8(value) | (num_bytes > F.lit(MAX_NAME_BYTES))
    return found


def folder_columns(files: "Files", path: str) -> list[str]:
    """The columns that a table's folders are named after, by the first folder of each level; empty without any."""
    for name in files.list_names(path):
        column, equals, _ = name.partition("=")
        if equals and not name.startswith(("_", ".")) and files.is_folder(f"{path}/{name}"):
            return [column, *folder_columns(files, f"{path}/{name}")]
    return []
