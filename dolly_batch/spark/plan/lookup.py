"""What a plan looks up in the output, in one look: the rows that are there already, and the answers to equal questions.

A small input, a day's, is broadcast: of the output a few narrow columns are read, none of it is shuffled, and what is
found is kept. Where ids alone are looked up, statistics tell which files may hold them.
"""

from functools import reduce
from operator import or_

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dolly_batch.spark.decisions import COPIED, SKIPPED, TODO
from dolly_batch.spark.plan.existing import KEYS, Retry
from dolly_batch.spark.plan.keys import NULL_KEY
from dolly_batch.spark.tables.id_range import id_range
from dolly_batch.spark.tables.output import OutputTable

FEW_ROWS = 200_000
"""Of the input; their keys, some 20 MB, go to each executor. More are joined by a shuffle of the whole output."""


def found_rows(target: OutputTable, retry: Retry) -> DataFrame | None:
    """All rows of the output, with the columns that are looked up; None where there is no output yet."""
    table = target.read()
    return None if table is None else target.key_rows(table, retry.resumes_truncated(target.job))


def found_of_few(target: OutputTable, keyed: DataFrame, retry: Retry, reuses: bool) -> DataFrame | None:
    """As `found_rows`, those alone that few `keyed` rows can meet: of a row key of theirs, or, with `reuses`, of a
    request key."""
    table = target.read()
    if table is None:
        return None
    ids = None if reuses else id_range(target, keyed.select(*target.input_columns()[: target.num_ids]))
    rows = target.key_rows(table if ids is None else table.filter(ids), retry.resumes_truncated(target.job))
    met = []
    for key in KEYS if reuses else KEYS[:1]:
        prefixes = ["", *(f"earlier_{i}_" for i in range(len(retry.earlier)))]
        # Of a row with a null id, the key that it is going to have.
        columns = (F.coalesce(F.col(prefix + key), F.lit(NULL_KEY)).alias(key) for prefix in prefixes)
        asked = reduce(DataFrame.unionByName, (keyed.select(column) for column in columns))
        mark = f"has_{key}"
        rows = rows.join(F.broadcast(asked.distinct().withColumn(mark, F.lit(True))), key, "left")
        met.append(F.col(mark).isNotNull())
    names = [name for name in rows.columns if not name.startswith("has_")]
    return rows.filter(reduce(or_, met)).select(*names)


def meets_none(rows: DataFrame, found: DataFrame) -> bool:
    """Whether none of the rows that a plan publishes has the row key of one that was found."""
    published = rows.filter(F.col("state").isin(TODO, SKIPPED, COPIED))
    return published.join(found, "row_key", "left_semi").isEmpty()
