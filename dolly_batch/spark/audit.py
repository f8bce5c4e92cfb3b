"""The audit compares planned keys with published rows: a run is complete when none is missing and none repeated."""

from dataclasses import dataclass, field
from functools import reduce
from operator import and_

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T

from dolly_batch.errors import AuditError
from dolly_batch.records import STATUSES
from dolly_batch.spark.decisions import (
    ASKING,
    CARRIED_OVER,
    COPIED,
    SKIPPED,
    TODO,
    UPDATE,
    identified_by,
    is_complete,
    miscounted,
    publishing,
)
from dolly_batch.spark.plan.existing import KEYS
from dolly_batch.spark.plan.manifest import Plan, PlanFolder
from dolly_batch.spark.publish import planned_at, snapshot
from dolly_batch.spark.tables.columns import no_rows, quoted_path
from dolly_batch.spark.tables.output import OutputTable
from dolly_batch.spark.tables.schemas import ANSWERERS

_ORIGIN = ("attempt", "plan_id", "created_at")
_PLANNED_SCHEMA = T.StructType(
    [*(T.StructField(key, T.StringType()) for key in KEYS), T.StructField("attempt", T.IntegerType())]
)


@dataclass(frozen=True)
class Findings:
    """What an audit counted."""

    num_rows: int
    num_missing: int
    num_repeated: int
    by_status: dict[str, int]
    num_completion_tokens: int
    answered_by: dict[str, int] = field(default_factory=dict)
    """With a cascade: rows by who answered them."""


def audit(target: OutputTable, folder: PlanFolder, plan: Plan) -> Findings:
    """Compare planned keys with published ones. Raises AuditError, with the counts, for a missing or a repeated row.

    The table is looked at as the plan's commit has left it, where the format can tell: what others delete or add later
    is theirs. Where nobody else has added rows between the plan and its commit, the plan's own rows are compared, and
    the rest of the table, which planning has seen, is not read. Where those are not all, it is: another plan's row may
    rightly stand in the place of one of this plan's.
    """
    table, was_alone = target.format.committed(target, folder, plan)
    table = target.read() if table is None else table
    if table is None:
        raise AuditError(f"plan {plan.plan_id}: the output {target.job.output.name} does not exist")
    planned, published = _planned_rows(target, folder, plan), _read_rows(target, table)
    num_expected = plan.num_planned + plan.num_carried_over
    own = [published.filter(_is_own(plan))] if was_alone and not plan.num_carried_over else []
    for rows in (*own, _rightly_there(target, plan, planned, published)):
        found = _compare(planned, rows, target.job.output.mode)
        if is_complete(num_expected, found.num_rows, found.num_missing, found.num_repeated):
            return found
    raise AuditError(
        f"plan {plan.plan_id}: of {num_expected} planned rows {found.num_missing} are missing and {found.num_repeated} "
        f"are repeated in {target.job.output.name}; its snapshot and answers are kept in {folder.path}. Put the table "
        "right and run the same command; or close the plan with --abandon, and the next run answers what is missing"
    )


def _is_own(plan: Plan) -> Column:
    """Whether this plan has written a row. Folders or files' statistics say where such rows are: the time too, since
    files that were put together hold the names of many plans, but none of this one's time."""
    return (F.col("plan_id") == plan.plan_id) & (F.col("created_at") == planned_at(plan))


def _rightly_there(target: OutputTable, plan: Plan, planned: DataFrame, published: DataFrame) -> DataFrame:
    """The published rows without those that this plan should have replaced."""
    mode = target.job.output.mode
    rule = publishing(mode, plan.retries) if mode != "overwrite" else None
    if rule is None or not rule.replaces.may_be(UPDATE):
        return published
    wanted = planned.select(*(F.col(name).alias(f"planned_{name}") for name in planned.columns))
    is_met = reduce(and_, (F.col(key) == F.col(f"planned_{key}") for key in rule.keys))
    decision = rule.replaces.column(
        later=F.col("planned_attempt") > F.col("attempt"),
        changed=F.col("planned_request_key") != F.col("request_key"),
        newer_there=F.col("created_at") > planned_at(plan),
    )
    return published.join(wanted, is_met).filter(_is_own(plan) | (decision != UPDATE)).select(*published.columns)


def audit_table(target: OutputTable, table: DataFrame) -> Findings:
    """Count rows and repeated rows of the whole table; nothing is raised."""
    keys = identified_by(target.job.output.mode)
    rows = _read_rows(target, table)
    answered = rows.filter(F.col("status") != "duplicate_id")
    repeated = answered.groupBy(*keys).count().filter(F.col("count") > 1).agg(F.sum(F.col("count") - 1)).first()
    by_status, tokens = count_statuses(rows)
    return Findings(sum(by_status.values()), 0, (repeated[0] or 0) if repeated else 0, by_status, tokens)


def count_statuses(rows: DataFrame) -> tuple[dict[str, int], int]:
    """Rows by status, and the answer tokens of all."""
    counted = rows.groupBy("status").agg(F.count("*"), F.sum("tokens")).orderBy("status").collect()
    return {row[0]: row[1] for row in counted}, sum(row[2] or 0 for row in counted)


def _compare(planned: DataFrame, published: DataFrame, mode: str) -> Findings:
    """Count planned rows, missing ones and repeated ones; of the published ones statuses, tokens, and who answered.

    Both sides go through one exchange: a table of many millions of rows is shuffled once, and nothing is joined.
    """
    none, keys = F.lit(None), identified_by(mode)
    told = [name for name in published.columns if name in ("status", "answered_by")]
    counted = {"status": STATUSES, "answered_by": ANSWERERS}
    values = [(name, value) for name in told for value in counted[name]]
    untold = (none.cast("string").alias(name) for name in told)
    sides = planned.select(*keys, F.lit(1).alias("want"), *untold, F.lit(0).alias("tokens"))
    sides = sides.unionByName(published.select(*keys, F.lit(0).alias("want"), *told, "tokens"))
    by_key = sides.groupBy(*keys).agg(
        F.sum("want").alias("want"),
        F.count("status").alias("have"),
        F.sum("tokens").alias("tokens"),
        *(F.count(F.when(F.col(name) == value, True)).alias(value) for name, value in values),
    )
    want, have = F.col("want"), F.col("have")
    counts = [want, *miscounted(want, have, F.greatest, F.lit(0)), F.col("tokens")]
    counts += [F.col(value) for _, value in values]
    totals = by_key.filter(want > 0).agg(*(F.sum(count) for count in counts))
    num_rows, missing, repeated, tokens, *numbers = (count or 0 for count in totals.collect()[0])
    by_value = {value: count for (_, value), count in zip(values, numbers, strict=True) if count}
    by_status, answered_by = ({v: n for v, n in by_value.items() if v in counted[name]} for name in counted)
    return Findings(num_rows, missing, repeated, by_status, tokens, answered_by)


def _read_rows(target: OutputTable, table: DataFrame) -> DataFrame:
    answerer = ["answered_by"] if target.job.task.cascade is not None else []
    return table.select(
        target.row_key().alias("row_key"),
        F.col(quoted_path(target.output_name("request_key"))).alias("request_key"),
        F.col(quoted_path(target.output_name("status"))).alias("status"),
        F.coalesce(F.col(quoted_path(target.output_name("num_completion_tokens"))), F.lit(0)).alias("tokens"),
        *(F.col(quoted_path(target.output_name(name))).alias(name) for name in (*_ORIGIN, *answerer)),
    )


def _planned_rows(target: OutputTable, folder: PlanFolder, plan: Plan) -> DataFrame:
    to_answer = ASKING if plan.num_shared else TODO
    counts = {
        to_answer: plan.num_todo,
        SKIPPED: plan.num_skipped,
        CARRIED_OVER: plan.num_carried_over,
        COPIED: plan.num_copied,
    }
    parts = [snapshot(target, folder, state).select(*KEYS, "attempt") for state, count in counts.items() if count]
    return reduce(DataFrame.unionByName, parts) if parts else no_rows(target.spark, _PLANNED_SCHEMA)
