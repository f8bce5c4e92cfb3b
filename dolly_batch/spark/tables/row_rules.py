"""Values of ids and kept columns that the output cannot take, found before the first question."""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dolly_batch.errors import OutputError
from dolly_batch.spark.decisions import EXISTING
from dolly_batch.spark.tables.output import OutputTable
from dolly_batch.spark.tables.partitions import unfit_values


def check_rows(target: OutputTable, rows: DataFrame) -> None:
    """Raise OutputError, with the number of rows, for values that the table's partitions or rules forbid."""
    inputs = rows.filter(F.col("state") != EXISTING).select(*target.input_columns())
    broken = {**unfit_values(target.job, inputs.schema), **target.format.broken_rules(target, inputs)}
    if not broken:
        return
    counts = inputs.agg(*(F.count(F.when(condition, True)) for condition in broken.values())).collect()[0]
    for message, count in zip(broken, counts, strict=True):
        if count:
            raise OutputError(f"{message} ({count:,} rows)")
