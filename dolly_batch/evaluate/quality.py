"""The quality of finished tables, compared with a gold column: labels, summaries, extracted objects."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from dolly_batch.config.evaluation import QualityConfig
from dolly_batch.errors import InputError
from dolly_batch.evaluate.accuracy import Accuracy, mean_of
from dolly_batch.evaluate.label_scores import LabelScore, score_labels
from dolly_batch.evaluate.object_fields import FieldCounts, parse_object
from dolly_batch.evaluate.rouge import KINDS, SUMS, load_scorer, sum_rouge
from dolly_batch.evaluate.table import Table, share
from dolly_batch.spark.tables.columns import ColumnRef, resolve_column
from dolly_batch.spark.tables.input import missing_column, read_table, unreadable_input_named

MAX_LABELS = 10_000
_TEXTS = (T.StringType, T.VarcharType, T.CharType)
_OBJECTS = (T.StructType, T.MapType)
_LABELS = (*_TEXTS, T.IntegralType, T.BooleanType)


@dataclass(frozen=True)
class QualityRow:
    """One number of one finished table. `of` is a label or a field, null for the number over all of them.

    Rows without a gold value are left out of `num_rows`; those without a prediction are in it, and count as wrong.
    """

    name: str
    kind: str
    metric: str
    of: str | None
    value: float
    stderr: float | None
    num_rows: int
    num_unanswered: int


@dataclass(frozen=True)
class Finished:
    """A finished table with its two columns as strings `gold` and `prediction`, null where there is none."""

    config: QualityConfig
    key: str
    rows: DataFrame


def open_quality(spark: SparkSession, configs: Sequence[QualityConfig]) -> list[Finished]:
    """Open the tables and check their columns, before any work.

    Raises InputError naming the entry, the column and its type, Refused where ROUGE's library is missing.
    """
    finished = []
    for index, config in enumerate(configs):
        key = f"quality.{index}"
        table, _ = read_table(spark, config, key)
        instead = missing_column(config, key)
        if config.kind == "summarize":
            load_scorer()
        columns = [
            _as_text(config.kind, resolve_column(table, name, f"{key}.{part}", instead), f"{key}.{part}").alias(part)
            for part, name in (("gold", config.gold), ("prediction", config.prediction))
        ]
        finished.append(Finished(config, key, table.select(*columns)))
    return finished


def _as_text(kind: str, column: ColumnRef, key: str) -> Column:
    """The column as string: labels as they print, texts as they are, objects as JSON."""
    if kind == "extract" and isinstance(column.type, _OBJECTS):
        return F.to_json(column.column)
    types = _LABELS if kind == "classify" else _TEXTS
    if isinstance(column.type, types):
        return column.column.cast("string")
    expected = {"classify": "a string, an integer or a boolean", "summarize": "a string"}
    raise InputError(
        f"{key}: column `{column.name}` is {column.type.simpleString()}, and must be "
        f"{expected.get(kind, 'a struct, a map or a string of JSON')} for `kind: {kind}`"
    )


def measure(finished: Finished) -> list[QualityRow]:
    """Measure one table. Raises InputError when it has no gold value at all, or one that cannot be used."""
    known = finished.rows.filter(F.col("gold").isNotNull())
    with unreadable_input_named(finished.config, finished.key):
        if known.isEmpty():
            raise InputError(f"{finished.key}: {finished.config.name}: no row has a value in `{finished.config.gold}`")
        return {"classify": _labels, "summarize": _summaries, "extract": _objects}[finished.config.kind](
            finished, known
        )


def _labels(finished: Finished, known: DataFrame) -> list[QualityRow]:
    right = F.count(F.when(F.col("gold") == F.col("prediction"), True)).alias("num_right")
    gold = known.groupBy("gold").agg(F.count("*").alias("num_gold"), right)
    predicted = known.groupBy(F.col("prediction").alias("gold")).agg(F.count("*").alias("num_predicted"))
    counted = gold.join(predicted, "gold", "left").select("gold", "num_gold", "num_predicted", "num_right")
    counts_by_label = counted.orderBy("gold").limit(MAX_LABELS + 1).collect()
    if len(counts_by_label) > MAX_LABELS:
        raise InputError(
            f"{finished.key}: `{finished.config.gold}` holds more than {MAX_LABELS:,} labels; is it text? "
            "`kind: summarize` compares texts"
        )
    num_unanswered = known.filter(F.col("prediction").isNull()).count()
    scores = [LabelScore(row[0], row[1], row[2] or 0, row[3]) for row in counts_by_label]
    quality = score_labels(scores, num_unanswered)
    counts = (quality.num_rows, quality.num_unanswered)
    rows = [
        _row(finished, "accuracy", None, quality.accuracy, counts),
        _row(finished, "macro_f1", None, Accuracy(quality.macro_f1, None), counts),
    ]
    for label in quality.labels:
        for metric, value in (("precision", label.precision), ("recall", label.recall), ("f1", label.f1)):
            rows.append(_row(finished, metric, label.label, Accuracy(value, None), (label.num_gold, 0)))
    return rows


def _summaries(finished: Finished, known: DataFrame) -> list[QualityRow]:
    sums = known.mapInPandas(_sum_rouge, ", ".join(f"{name} double" for name in SUMS))
    row = sums.agg(*(F.sum(name).alias(name) for name in SUMS)).collect()[0]
    counts = (int(row.num_rows), int(row.num_unanswered))
    return [_row(finished, kind, None, mean_of(row[kind], row[f"{kind}_squares"], counts[0]), counts) for kind in KINDS]


def _sum_rouge(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    scorer = load_scorer()
    for batch in batches:
        yield pd.DataFrame([sum_rouge(scorer, _pairs(batch))])


def _objects(finished: Finished, known: DataFrame) -> list[QualityRow]:
    counts = FieldCounts()
    bad_gold = 0
    for row in known.mapInPandas(_count_fields, "counts string, bad_gold long").toLocalIterator():
        counts.merge(FieldCounts.from_json(row[0]))
        bad_gold += row[1]
    if bad_gold:
        raise InputError(f"{finished.key}: {bad_gold:,} values of `{finished.config.gold}` are not JSON objects")
    whole = (counts.num_rows, counts.num_unanswered)
    return [
        _row(finished, "exact_match", None, counts.whole, whole),
        *(
            _row(finished, "exact_match", name, value, (counts.num_seen[name], 0))
            for name, value in counts.fields.items()
        ),
    ]


def _count_fields(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    counts, bad_gold = FieldCounts(), 0
    for batch in batches:
        for gold, prediction in _pairs(batch):
            expected = parse_object(gold)
            if expected is None:
                bad_gold += 1
            else:
                counts.add(expected, parse_object(prediction))
    yield pd.DataFrame([(counts.to_json(), bad_gold)], columns=["counts", "bad_gold"])


def _pairs(batch: pd.DataFrame) -> Iterator[tuple[str, str | None]]:
    for gold, prediction in batch[["gold", "prediction"]].itertuples(index=False, name=None):
        yield gold, None if pd.isna(prediction) else prediction


def _row(finished: Finished, metric: str, of: str | None, value: Accuracy, counts: tuple[int, int]) -> QualityRow:
    config = finished.config
    return QualityRow(config.title or config.name, config.kind, metric, of, value.value, value.stderr, *counts)


def quality_tables(rows: Sequence[QualityRow]) -> list[Table]:
    """One table for each kind, a line for each finished table, and long ones with a line for each label or field."""
    tables = []
    for kind in dict.fromkeys(row.kind for row in rows):
        of_kind = [row for row in rows if row.kind == kind]
        metrics = tuple(dict.fromkeys(row.metric for row in of_kind if row.of is None))
        over_all: dict[str, list[QualityRow]] = {}
        for row in of_kind:
            if row.of is None:
                over_all.setdefault(row.name, []).append(row)
        body = tuple(
            (name, f"{of[0].num_rows:,}", f"{of[0].num_unanswered:,}", *(share(row.value, row.stderr) for row in of))
            for name, of in over_all.items()
        )
        tables.append(Table(f"Quality: {kind}", ("table", "rows", "unanswered", *metrics), body))
        for name in over_all:
            parts = [row for row in of_kind if row.name == name and row.of is not None]
            tables += [_parts_table(name, parts)] if parts else []
    return tables


def _parts_table(name: str, rows: Sequence[QualityRow]) -> Table:
    """The numbers of each label or field of one finished table."""
    metrics = tuple(dict.fromkeys(row.metric for row in rows))
    by_part: dict[str, list[QualityRow]] = {}
    for row in rows:
        by_part.setdefault(str(row.of), []).append(row)
    body = tuple(
        (part, f"{of[0].num_rows:,}", *(share(row.value, row.stderr) for row in of)) for part, of in by_part.items()
    )
    part = "field" if rows[0].kind == "extract" else "label"
    return Table(f"{name}, by {part}", (part, "rows", *metrics), body, is_long=len(body) > 20)
