"""Questions that the output answers already, for other rows: the answer is copied, and no model is asked.

The answers are kept in the plan: what is deleted from the output between planning and publishing is not missed.
"""

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dolly_batch.spark.decisions import COPIED, TODO
from dolly_batch.spark.plan.existing import Retry
from dolly_batch.spark.tables.columns import answer_fields, quoted_path
from dolly_batch.spark.tables.output import OutputTable

REUSABLE = ("ok", "truncated")
"""An answer with another status may be better the next time."""
_BROADCAST_QUESTIONS = 500_000
_MAX_PLANS = 100


def known_questions(rows: DataFrame, found: DataFrame, retry: Retry, num_questions: int) -> DataFrame:
    """The request keys, of rows to answer, that are `found` with an answer in the output; and which plans gave them.

    Where the questions are few, nothing that is found is shuffled.
    """
    asked = rows.filter(F.col("state") == TODO).select("request_key").distinct()
    asked = F.broadcast(asked) if num_questions <= _BROADCAST_QUESTIONS else asked
    answered = found.filter(_is_reusable(F.col("status"), retry)).select("request_key", "plan_id")
    return (
        answered.join(asked, "request_key", "left_semi")
        .groupBy("request_key")
        .agg(F.collect_set("plan_id").alias("plans"))
    )


def known_answers(known: DataFrame, target: OutputTable, table: DataFrame, retry: Retry, num_known: int) -> DataFrame:
    """(request_key, answer) of the known questions: the latest answer, a struct of the output's answer columns."""
    fields = [field.name for field in answer_fields(target.job)]
    values = F.struct(*(F.col(quoted_path(target.output_name(name))).alias(name) for name in fields))
    request_key, status, plan_id = (
        F.col(quoted_path(target.output_name(name))) for name in ("request_key", "status", "plan_id")
    )
    plans = [row[0] for row in known.select(F.explode("plans")).distinct().limit(_MAX_PLANS + 1).collect()]
    if len(plans) <= _MAX_PLANS:  # folders, or files' statistics, say where their rows are
        table = table.filter(plan_id.isin(plans))
    answers = table.filter(_is_reusable(status, retry)).select(request_key.alias("request_key"), values.alias("answer"))
    keys = known.select("request_key")
    keys = F.broadcast(keys) if num_known <= _BROADCAST_QUESTIONS else keys
    answers = answers.join(keys, "request_key", "left_semi")
    return answers.groupBy("request_key").agg(F.max_by("answer", F.col("answer.created_at")).alias("answer"))


def with_known(rows: DataFrame, known: DataFrame) -> DataFrame:
    """The rows, with the state COPIED where they were to ask a known question."""
    marked = rows.join(known.select("request_key", F.lit(True).alias("is_known")), "request_key", "left")
    is_copied = (F.col("state") == TODO) & F.col("is_known").isNotNull()
    state = F.when(is_copied, COPIED).otherwise(F.col("state")).alias("state")
    return marked.select(*(state if name == "state" else F.col(name) for name in rows.columns))


def _is_reusable(status: Column, retry: Retry) -> Column:
    return status.isin([one for one in REUSABLE if one not in retry.statuses])
