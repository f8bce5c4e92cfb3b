"""What a plan looks up in the output, in one look: the rows that are there already, and the answers to equal questions.

A small input, a day's, is broadcast: of the output a few narrow columns are read, none of it is shuffled, and what is
found is kept. Where ids alone are looked up, statistics tell which files may hold them.
"""

from collections.abc import Iterable
from functools import reduce
from operator import and_, or_

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from dolly_batch.spark.decisions import COPIED, SKIPPED, TODO
from dolly_batch.spark.plan.existing import KEYS, Retry
from dolly_batch.spark.plan.keys import NULL_KEY
from dolly_batch.spark.tables.columns import quoted_path
from dolly_batch.spark.tables.output import OutputTable

FEW_ROWS = 200_000
"""Of the input; their keys, some 20 MB, go to each executor. More are joined by a shuffle of the whole output."""
_RANGED = (T.StringType, T.ByteType, T.ShortType, T.IntegerType, T.LongType)


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


def id_range(target: OutputTable, ids: DataFrame) -> Column | None:
    """A condition on the output's id columns that all of these ids meet, by their least and greatest values.

    `ids` has the id columns under the output's names. None where that would say nothing.
    """
    fields = [field for field in target.schema.fields[: target.num_ids] if isinstance(field.dataType, _RANGED)]
    if not fields:
        return None
    columns = [F.col(quoted_path(field.name)) for field in fields]
    is_text = [isinstance(field.dataType, T.StringType) for field in fields]
    found = ids.agg(*(value for column, text in zip(columns, is_text, strict=True) for value in _bounds(column, text)))
    bounds = found.collect()[0]
    conditions = [_between(column, *bounds[4 * i : 4 * i + 4]) for i, column in enumerate(columns)]
    return reduce(and_, conditions)


def _bounds(column: Column, is_text: bool) -> Iterable[Column]:
    # Bytes that are not UTF-8 do not come here as they are.
    is_whole = F.bool_and(F.is_valid_utf8(column)) if is_text else F.lit(True)
    return F.min(column), F.max(column), F.count(F.when(column.isNull(), True)), is_whole


def _between(column: Column, least: object, greatest: object, num_null: int, is_whole: bool | None) -> Column:
    if is_whole is False:
        return F.lit(True)
    inside = F.lit(False) if least is None else (column >= F.lit(least)) & (column <= F.lit(greatest))
    return inside | column.isNull() if num_null else inside
