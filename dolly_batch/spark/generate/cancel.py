"""Spark jobs that one thread starts and another one cancels."""

import uuid
from collections.abc import Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import SparkSession

from dolly_batch.spark.session.session import is_connect


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

    def cancel_all(self, running: Iterable[Future[Any]]) -> None:
        """Cancel the marked jobs until these threads, which started them, have ended.

        Again and again: a thread that is just starting has no job yet that could be cancelled.
        """
        left = wait(running, timeout=0).not_done
        while left:
            self._cancel()
            left = wait(left, timeout=0.5).not_done

    def _cancel(self) -> None:
        if is_connect(self.spark):
            self.spark.interruptTag(self.name)
        else:
            self.spark.sparkContext.cancelJobsWithTag(self.name)
