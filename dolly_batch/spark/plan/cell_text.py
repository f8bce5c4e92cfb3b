"""The text of a cell as it stands in a prompt: the same in every session, since keys are made of it.

Spark's own casts write instants in the session's time zone, and small decimals as `spark.sql.ansi.enabled` says, within
arrays, maps and structs too.
"""

from decimal import Decimal

from pyspark.sql import Column
from pyspark.sql import functions as F
from pyspark.sql import types as T

from dolly_batch.spark.plan.keys import decimal_text, holds

_BY_SESSION = (T.DecimalType, T.TimestampType)


def cell_text(column: Column, kind: T.DataType) -> Column:
    """A value as text: of an instant its time in UTC, of a decimal its digits; null where the value is."""
    return _fixed(column, kind).cast("string")


def _fixed(column: Column, kind: T.DataType) -> Column:
    """The value, with text for all in it that a cast would write by the session's settings."""
    if isinstance(kind, T.DecimalType):
        return decimal_text(column, kind)
    if isinstance(kind, T.TimestampType):
        return _utc(column).cast("string")
    if not holds(kind, _BY_SESSION):
        return column
    if isinstance(kind, T.ArrayType):
        return F.transform(column, lambda item: _fixed(item, kind.elementType))
    if isinstance(kind, T.MapType):
        texts = F.transform_values(column, lambda _, value: _fixed(value, kind.valueType))
        return F.transform_keys(texts, lambda key, _: _fixed(key, kind.keyType))
    fields = kind.fields if isinstance(kind, T.StructType) else []
    inner = (_fixed(column.getField(field.name), field.dataType).alias(field.name) for field in fields)
    return F.when(column.isNotNull(), F.struct(*inner))


def _utc(instant: Column) -> Column:
    """The time in UTC, as a time without a zone."""
    seconds = (F.unix_micros(instant) * F.lit(Decimal("0.000001"))).cast("decimal(18,6)")
    return F.lit("1970-01-01").cast("timestamp_ntz") + F.make_dt_interval(secs=seconds)
