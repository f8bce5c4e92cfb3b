"""Where rows of some ids may be: a condition by which files are left out, as their statistics say."""

from collections.abc import Iterable
from functools import reduce
from operator import and_

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from dolly_batch.spark.tables.columns import quoted_path
from dolly_batch.spark.tables.output import OutputTable

_RANGED = (T.StringType, T.ByteType, T.ShortType, T.IntegerType, T.LongType)


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
