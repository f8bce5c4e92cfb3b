"""Parts of a plan on disk: Parquet folders, each with its schema in a file next to it.

Spark runs a job to infer the schema of a Parquet folder, each time the folder is opened. A plan opens its parts a dozen
times: for a small table that was a third of all jobs of a run.
"""

import json
from collections.abc import Sequence

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from dolly_batch.spark.files import Files, literal

SCHEMA = ".schema.json"


def write_part(files: Files, rows: DataFrame, path: str, partition_by: Sequence[str] = ()) -> None:
    """Write rows as the Parquet folder `path`, and their schema as `path`.schema.json."""
    writer = rows.write
    if partition_by:
        writer = writer.partitionBy(*partition_by)
    writer.parquet(path)
    files.write(path + SCHEMA, rows.schema.json())


def read_part(spark: SparkSession, files: Files, path: str) -> DataFrame:
    """Read what `write_part` wrote, or a part of a plan that was opened before parts carried their schema."""
    text = files.read(path + SCHEMA)
    if text is None:
        return spark.read.parquet(literal(path))
    return spark.read.schema(T.StructType.fromJson(json.loads(text))).parquet(literal(path))
