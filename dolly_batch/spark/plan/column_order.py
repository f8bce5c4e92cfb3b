"""For a template: in which order its columns would let rows share most of what they begin with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from pyspark.sql import Column
from pyspark.sql import functions as F

from dolly_batch.spark.plan.distinct import count_distinct
from dolly_batch.spark.tables.input import InputTable

MAX_COLUMNS = 5
"""All sets of columns are counted, 31 of five; in longer templates the first columns alone are looked at."""
MIN_GAIN = 0.05
"""Of the columns' text: nobody rewrites a template for less."""

Count = Callable[[frozenset[int]], int]


@dataclass(frozen=True)
class ColumnOrder:
    """The columns in the order that shares most; the shares are of the columns' text, in this order and in today's."""

    columns: tuple[str, ...]
    share: float
    share_now: float

    def __str__(self) -> str:
        names = ", ".join(f"{{{name}}}" for name in self.columns)
        return (
            f"task.template: with its columns in the order {names} rows would begin alike for about {self.share:.0%} "
            f"of the columns' text, {self.share_now:.0%} as it is"
        )


def find_column_order(source: InputTable) -> ColumnOrder | None:
    """A better order of the template's columns than today's, None where there is none. Reads the input once.

    Rows share a beginning as far as the values of all columns up to there are equal.
    """
    columns = {value.name: value.column.cast("string") for value in source.values}
    names = list(columns)[:MAX_COLUMNS]
    if len(names) < 2:
        return None
    num_rows, num_chars, num_distinct = _counted(source, [columns[name] for name in names])
    return choose_order(names, num_chars, num_rows, lambda chosen: num_distinct[chosen])


def choose_order(
    names: Sequence[str], num_chars: Sequence[int], num_rows: int, num_distinct: Count
) -> ColumnOrder | None:
    """The best of all orders, by dynamic programming over sets of columns.

    `num_chars` are a column's characters in all rows; `num_distinct` says how many different rows a set of columns has.
    """

    def saved(chosen: frozenset[int], last: int) -> float:
        return num_chars[last] * (1 - min(1.0, num_distinct(chosen) / num_rows))

    total = sum(num_chars)
    if not num_rows or not total:
        return None
    every = range(len(names))
    best: dict[frozenset[int], tuple[float, tuple[int, ...]]] = {frozenset(): (0.0, ())}
    for size in range(1, len(names) + 1):
        for members in combinations(every, size):
            chosen = frozenset(members)
            ends = ((best[chosen - {last}], last) for last in members)
            best[chosen] = max(((before + saved(chosen, last), (*order, last)) for (before, order), last in ends))
    gained, order = best[frozenset(every)]
    now = sum(saved(frozenset(range(last + 1)), last) for last in every)
    if gained - now < MIN_GAIN * total:
        return None
    return ColumnOrder(tuple(names[i] for i in order), gained / total, now / total)


def _counted(source: InputTable, columns: Sequence[Column]) -> tuple[int, list[int], dict[frozenset[int], int]]:
    """The rows, each column's characters, and how many different values each set of the columns has."""
    sets = [c for size in range(1, len(columns) + 1) for c in combinations(range(len(columns)), size)]
    hashes = [F.xxhash64(*(columns[i] for i in chosen)) for chosen in sets]
    found = count_distinct(source.df, hashes, [F.length(column) for column in columns])
    num_distinct = {frozenset(chosen): num for chosen, (_, num) in zip(sets, found, strict=False)}
    return found[0][0], [total for _, total in found[len(sets) :]], num_distinct
