"""How many different values there are, of several expressions over one table at once, about."""

from collections.abc import Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

_ERROR = 0.025
"""The estimate's relative standard error; few values are counted nearly exactly."""


def count_distinct(rows: DataFrame, hashes: Sequence[Column], sums: Sequence[Column]) -> list[tuple[int, int]]:
    """For each of the 64-bit `hashes`, how many rows have one, and about how many are different; then (0, sum) of each
    of the integers `sums`. One pass over the rows.

    The values become rows of one aggregation: beside one another, Spark's estimators need a buffer column for every
    few registers, a minute of compiling, and its sketches print a warning about Java's version.
    """
    values = [(value.cast("bigint"), F.lit(0).cast("bigint")) for value in hashes]
    values += [(F.lit(None).cast("bigint"), value.cast("bigint")) for value in sums]
    parts = [F.struct(F.lit(i).alias("of"), h.alias("hash"), n.alias("amount")) for i, (h, n) in enumerate(values)]
    long = rows.select(F.explode(F.array(*parts)).alias("part")).select("part.*")
    counted = long.groupBy("of").agg(
        F.count("hash"), F.approx_count_distinct("hash", _ERROR), F.coalesce(F.sum("amount"), F.lit(0))
    )
    found = {of: (count, min(count, distinct), total) for of, count, distinct, total in counted.collect()}
    none = (0, 0, 0)
    each = [found.get(i, none) for i in range(len(values))]
    return [(count, distinct if i < len(hashes) else total) for i, (count, distinct, total) in enumerate(each)]
