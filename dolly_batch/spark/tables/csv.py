"""CSV, read only: every value as text, or by `input.schema`."""

from typing import ClassVar

from dolly_batch.spark.tables.base import InputFormat


class Csv(InputFormat):
    """CSV files with a header.

    Cells with line breaks and doubled quotes are the rule in tables of text, and Spark's defaults garble both. A line
    with too few or too many cells is an error: Spark's default fills it with nulls.
    """

    name = "csv"
    read_options: ClassVar = {
        "header": "true",
        "multiLine": "true",
        "escape": '"',
        "mode": "FAILFAST",
        "inferSchema": "false",
    }


FORMAT = Csv()
