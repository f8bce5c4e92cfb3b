"""The audit: planned keys against published rows. Only when none is missing and none is twice is a run complete."""

from dataclasses import dataclass
from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dolly_batch.errors import AuditError
from dolly_batch.spark.columns import quoted_path
from dolly_batch.spark.manifest import Plan, PlanFolder
from dolly_batch.spark.publish import snapshot
from dolly_batch.spark.target import Target


@dataclass(frozen=True)
class Findings:
    """What an audit counted."""

    num_rows: int
    num_missing: int
    num_repeated: int
    by_status: dict[str, int]
    num_completion_tokens: int


def audit(target: Target, folder: PlanFolder, plan: Plan) -> Findings:
    """Compare planned keys with published ones. Raises AuditError, with the counts, for a missing or a repeated row."""
    table = target.read()
    if table is None:
        raise AuditError(f"plan {plan.plan_id}: the output {target.job.output.name} is not there")
    planned = _planned_keys(target, folder, plan)
    keys = ["row_key"] if target.job.output.mode == "merge" else ["row_key", "request_key"]
    found = _read_rows(target, table)
    expected = planned.groupBy(*keys).agg(F.count("*").alias("want"))
    have = found.groupBy(*keys).agg(F.count("*").alias("have"))
    compared = expected.join(have, keys, "left").select("want", F.coalesce("have", F.lit(0)).alias("have"))
    counts = compared.agg(
        F.coalesce(F.sum("want"), F.lit(0)),
        F.coalesce(F.sum(F.greatest(F.col("want") - F.col("have"), F.lit(0))), F.lit(0)),
        F.coalesce(F.sum(F.greatest(F.col("have") - F.col("want"), F.lit(0))), F.lit(0)),
    ).first()
    if counts is None:
        raise AuditError(f"plan {plan.plan_id}: its rows cannot be counted")
    num_rows, missing, repeated = counts
    if missing or repeated or num_rows != plan.num_planned + plan.num_reused:
        raise AuditError(
            f"plan {plan.plan_id}: of {plan.num_planned + plan.num_reused} planned rows {missing} are missing and "
            f"{repeated} are there too often in {target.job.output.name}; "
            f"its snapshot and answers are kept in {folder.path}"
        )
    mine = found.join(planned.select(*keys).distinct(), keys, "left_semi")
    by_status, tokens = count_statuses(mine)
    return Findings(num_rows, missing, repeated, by_status, tokens)


def audit_table(target: Target, table: DataFrame) -> Findings:
    """Look over the whole table for rows that are there twice: nothing is raised, only counted."""
    keys = ["row_key"] if target.job.output.mode == "merge" else ["row_key", "request_key"]
    rows = _read_rows(target, table)
    answered = rows.filter(F.col("status") != "duplicate_id")
    repeated = answered.groupBy(*keys).count().filter(F.col("count") > 1).agg(F.sum(F.col("count") - 1)).first()
    by_status, tokens = count_statuses(rows)
    return Findings(sum(by_status.values()), 0, (repeated[0] or 0) if repeated else 0, by_status, tokens)


def count_statuses(rows: DataFrame) -> tuple[dict[str, int], int]:
    """Rows by status, and the answer tokens of all."""
    counted = rows.groupBy("status").agg(F.count("*"), F.sum("tokens")).orderBy("status").collect()
    return {row[0]: row[1] for row in counted}, sum(row[2] or 0 for row in counted)


def _read_rows(target: Target, table: DataFrame) -> DataFrame:
    return table.select(
        target.row_key().alias("row_key"),
        F.col(quoted_path(target.own("request_key"))).alias("request_key"),
        F.col(quoted_path(target.own("status"))).alias("status"),
        F.coalesce(F.col(quoted_path(target.own("num_completion_tokens"))), F.lit(0)).alias("tokens"),
    )


def _planned_keys(target: Target, folder: PlanFolder, plan: Plan) -> DataFrame:
    parts = ["aside", *(["todo"] if plan.waves else []), *(["reused"] if plan.num_reused else [])]
    keys = [snapshot(target, folder, part).select("row_key", "request_key") for part in parts]
    return reduce(DataFrame.unionByName, keys)
