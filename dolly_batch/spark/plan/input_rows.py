"""Stage 1 of planning: input rows get their keys, their token counts, and a status where they cannot run."""

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import or_

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dolly_batch.config.job import JobConfig
from dolly_batch.errors import InputError
from dolly_batch.spark.model import ModelFacts
from dolly_batch.spark.plan.cell_text import cell_text
from dolly_batch.spark.plan.existing import Retry, with_earlier_keys
from dolly_batch.spark.plan.keys import content_row_key, request_header, request_key, row_key, shown_ids
from dolly_batch.spark.plan.questions import GOLD
from dolly_batch.spark.plan.row_status import assign_status, mark_bad_ids
from dolly_batch.spark.tables.columns import ColumnRef
from dolly_batch.spark.tables.input import InputTable
from dolly_batch.tasks.base import PreparedTask


def key_input(source: InputTable, job: JobConfig, model: ModelFacts, prepared: PreparedTask, retry: Retry) -> DataFrame:
    """Key each input row, count its tokens, and give it a status where it cannot run."""
    text = (F.lit(None) if source.context is None else source.context.column).cast("string")
    values = [cell_text(column.column, column.type) for column in source.values]
    # Other formats say that their strings are UTF-8, and their bytes are copied as they are.
    mended = [kept.name for kept in source.kept if job.input.is_text and kept.is_text]
    rows = source.df.select(
        *(column.column.alias(f"id_{i}") for i, column in enumerate(source.ids)),
        *(_kept(kept, mended).alias(f"keep_{i}") for i, kept in enumerate(source.kept)),
        (row_key(source.ids) if source.ids else F.lit("")).alias("row_key"),
        F.array(*values).cast("array<string>").alias("values"),
        text.alias("text"),
        F.when(F.length(text) > 0, text).alias("context"),
        _any(~F.is_valid_utf8(kept.column) for kept in source.kept if kept.name in mended).alias("is_mended"),
        *([source.gold.column.cast("string").alias(GOLD)] if source.gold is not None else []),
    )
    # Keys are made from what the model is asked in the end: a row that did not have to be cut keeps its key.
    rows = assign_status(rows, model.task_model, prepared, job.limits.long_prompt)
    header = request_header(job, model.identity)
    rows = rows.withColumn("request_key", request_key(header, F.col("instruction"), F.col("context")))
    kept = _kept_refs(source)
    if not source.ids:
        rows = rows.withColumn("row_key", content_row_key(F.col("request_key"), kept))
    return with_earlier_keys(rows, retry, kept, has_ids=bool(source.ids))


def _kept_refs(source: InputTable) -> list[ColumnRef]:
    """The kept columns of keyed rows."""
    return [ColumnRef(F.col(f"keep_{i}"), f"keep_{i}", column.type) for i, column in enumerate(source.kept)]


def _kept(kept: ColumnRef, mended: Sequence[str]) -> Column:
    """A kept value; in the columns `mended`, with U+FFFD where a byte is not text."""
    return F.make_valid_utf8(kept.column) if kept.name in mended else kept.column


def _any(conditions: Iterable[Column]) -> Column:
    """Whether one of them is true; a null is not."""
    return F.coalesce(reduce(or_, conditions, F.lit(False)), F.lit(False))


def check_ids(keyed: DataFrame, source: InputTable, job: JobConfig) -> None:
    """Raise InputError for null and duplicate ids, unless the job wants them as rows with a status."""
    is_no_text = ~F.is_valid_utf8("row_key") & F.lit(job.input.is_text)
    counts = keyed.groupBy("row_key").count()
    counts = counts.filter((F.col("count") > 1) | F.col("row_key").isNull() | is_no_text)
    if not counts.limit(1).collect():  # one stage less than to count them, and so it is nearly always
        return
    null_count, no_text_count = (F.when(bad, F.col("count")) for bad in (F.col("row_key").isNull(), is_no_text))
    num_bad, num_null, num_no_text = counts.agg(F.sum("count"), F.sum(null_count), F.sum(no_text_count)).collect()[0]
    if num_no_text:
        raise InputError(
            f"input.id: {num_no_text} rows have an id that is not valid UTF-8; correct them, or set "
            "input.options: {encoding: ISO-8859-1} or what else the files are in"
        )
    if job.input.on_bad_id == "status":
        if job.output.mode == "merge":
            raise InputError("input.on_bad_id: with output.mode merge ids must be unique; fix them, or use append")
        return
    columns = ", ".join(f"`{column.name}`" for column in source.ids)
    samples = counts.filter(F.col("row_key").isNotNull()).orderBy("row_key").limit(5).collect()
    shown = f"; for example {shown_ids(map(tuple, samples), len(source.ids))}" if samples else ""
    raise InputError(
        f"input.id ({columns}): {num_bad} rows have a null or repeated id ({num_null or 0} null){shown}. "
        "Ids must be unique; set input.on_bad_id: status to skip such rows with the status duplicate_id"
    )


def limit_rows(keyed: DataFrame, source: InputTable, job: JobConfig, limit: int | None) -> DataFrame:
    """The first `limit` rows by key, those with bad ids marked as such."""
    if source.ids and job.input.on_bad_id == "status":
        keyed = mark_bad_ids(keyed, _kept_refs(source))
    return keyed if limit is None else keyed.orderBy("row_key", "request_key").limit(limit)
