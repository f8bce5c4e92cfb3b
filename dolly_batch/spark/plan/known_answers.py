"""Questions that the output answers already, for other rows: the answer is copied, and no model is asked.

The answers are kept in the plan: what is deleted from the output between planning and publishing is not missed.
"""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dolly_batch.spark.decisions import COPIED, TODO
from dolly_batch.spark.plan.existing import Retry
from dolly_batch.spark.tables.columns import answer_fields, quoted_path
from dolly_batch.spark.tables.output import OutputTable

REUSABLE = ("ok", "truncated")
"""An answer with another status may be better the next time."""
_BROADCAST_QUESTIONS = 500_000


def known_questions(
    rows: DataFrame, target: OutputTable, table: DataFrame, retry: Retry, num_questions: int
) -> DataFrame:
    """The request keys of rows to answer for which `table`, the output, has an answer.

    Of the output two columns are read, and where the questions are few, none of it is shuffled.
    """
    asked = rows.filter(F.col("state") == TODO).select("request_key").distinct()
    asked = F.broadcast(asked) if num_questions <= _BROADCAST_QUESTIONS else asked
    return _answered(table, target, retry).select("request_key").join(asked, "request_key", "left_semi").distinct()


def known_answers(known: DataFrame, target: OutputTable, table: DataFrame, retry: Retry, num_known: int) -> DataFrame:
    """(request_key, answer) of the known questions: the latest answer, a struct of the output's answer columns."""
    fields = [field.name for field in answer_fields(target.job)]
    values = F.struct(*(F.col(quoted_path(target.output_name(name))).alias(name) for name in fields))
    answers = _answered(table, target, retry).select("request_key", values.alias("answer"))
    known = F.broadcast(known) if num_known <= _BROADCAST_QUESTIONS else known
    answers = answers.join(known, "request_key", "left_semi")
    return answers.groupBy("request_key").agg(F.max_by("answer", F.col("answer.created_at")).alias("answer"))


def with_known(rows: DataFrame, known: DataFrame) -> DataFrame:
    """The rows, with the state COPIED where they were to ask a known question."""
    marked = rows.join(known.select("request_key", F.lit(True).alias("is_known")), "request_key", "left")
    is_copied = (F.col("state") == TODO) & F.col("is_known").isNotNull()
    state = F.when(is_copied, COPIED).otherwise(F.col("state")).alias("state")
    return marked.select(*(state if name == "state" else F.col(name) for name in rows.columns))


def _answered(table: DataFrame, target: OutputTable, retry: Retry) -> DataFrame:
    """The output's rows whose answers can be copied, with `request_key` beside their own columns."""
    statuses = [status for status in REUSABLE if status not in retry.statuses]
    answered = table.filter(F.col(quoted_path(target.output_name("status"))).isin(statuses))
    return answered.withColumn("request_key", F.col(quoted_path(target.output_name("request_key"))))
