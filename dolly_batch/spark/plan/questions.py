"""Rows that ask the same: the model is asked once, and all of them get its answer.

Only where equal requests have equal answers (`PreparedTask.shares`). The questions are what is laid out in shards; the
rows that ask them are kept beside, and joined with the answers when they are published.
"""

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dolly_batch.config.job import JobConfig
from dolly_batch.spark.plan.existing import Retry
from dolly_batch.tasks.base import PreparedTask

ASKED = ("instruction", "context", "num_prompt_tokens")
"""What a question takes into its shard, beside its keys; its rows need none of it."""
GOLD = "gold"
"""The gold label of a row, where a cascade is checked against such: of a question, that of its first row."""


def shares_answers(job: JobConfig, prepared: PreparedTask, retry: Retry) -> bool:
    """Whether rows of one request key are one question. Rows that resume partial answers each have their own."""
    return prepared.shares and not retry.resumes_truncated(job)


def distinct_questions(todo: DataFrame) -> DataFrame:
    """One row for each request key, with the smallest of its row keys.

    Spark drops the repeated ones before it shuffles: a question of a million rows is as cheap as any other.
    """
    first = F.min_by(F.struct("row_key", *ASKED, *_gold_of(todo)), "row_key").alias("first")
    return todo.groupBy("request_key").agg(first).select("request_key", "first.*")


def asking_rows(todo: DataFrame) -> DataFrame:
    """The rows without what their questions hold."""
    return todo.drop(*ASKED, GOLD)


def _gold_of(todo: DataFrame) -> list[str]:
    return [name for name in todo.columns if name == GOLD]
