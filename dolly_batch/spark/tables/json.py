"""JSON, one object a line, read only: every value as text, or by `input.schema`."""

from typing import ClassVar

from pyspark.sql import DataFrame, SparkSession

from dolly_batch.config.job import ReadableTable
from dolly_batch.errors import InputError
from dolly_batch.spark.tables.base import InputFormat

CORRUPT = "_corrupt_record"


class Json(InputFormat):
    """JSON files. Without a schema a value is the text in the file: `007` stays `007`, `1.0` stays `1.0`."""

    name = "json"
    read_options: ClassVar = {"primitivesAsString": "true"}

    def read(self, spark: SparkSession, config: ReadableTable, key: str) -> tuple[DataFrame, int | None]:
        """As every format; raises InputError where a line is not a JSON object and no schema is given."""
        df, _ = super().read(spark, config, key)
        if config.columns is None and CORRUPT in df.columns:
            raise InputError(
                f"{key} {config.name}: some lines are not JSON objects; fix them, or leave them out with "
                f"{key}.options {{mode: DROPMALFORMED}} (for one object over many lines: {{multiLine: 'true'}})"
            )
        return df, None


FORMAT = Json()
