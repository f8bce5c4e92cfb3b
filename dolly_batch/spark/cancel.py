"""Spark jobs that one thread starts and another one cancels."""

import uuid
from dataclasses import dataclass, field

from pyspark.sql import SparkSession

from dolly_batch.spark.session import is_connect


@dataclass(frozen=True)
class JobTag:
    """A mark on Spark jobs, by which they are cancelled.

    Without Connect it is the context's: the session's own tags (`SparkSession.addTag`) are known to no thread but the
    one that set them, and another one's `interruptTag` finds nothing (seen in Spark 4.2).
    """

    spark: SparkSession
    name: str = field(default_factory=lambda: f"dolly_batch-{uuid.uuid4().hex[:12]}")

    def mark(self) -> None:
        """Mark the jobs that this thread starts from now on."""
        if is_connect(self.spark):
            self.spark.addTag(self.name)
        else:
            self.spark.sparkContext.addJobTag(self.name)

    def cancel(self) -> None:
        """Cancel the marked jobs that are running. One that is just being started has to be cancelled again."""
        if is_connect(self.spark):
            self.spark.interruptTag(self.name)
        else:
            self.spark.sparkContext.cancelJobsWithTag(self.name)
