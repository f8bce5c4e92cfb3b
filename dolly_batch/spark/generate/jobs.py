"""Spark jobs that run in threads, are watched and cancelled together, and leave whole folders or none."""

import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import SparkSession

from dolly_batch.spark.files import Files
from dolly_batch.spark.session.session import is_connect


def run_watched(
    spark: SparkSession, jobs: Iterable[Callable[[], None]], max_in_flight: int, tick: Callable[[], None]
) -> None:
    """Run functions that start Spark jobs, `max_in_flight` at a time and in their order, each in a thread.

    `tick` is called about four times a second. Any exception, of a job, of `tick` or KeyboardInterrupt, cancels the
    running jobs and is raised when their threads have ended.
    """
    tag = JobTag(spark)

    def tagged(job: Callable[[], None]) -> None:
        tag.mark()
        job()

    waiting = deque(jobs)
    running: set[Future[None]] = set()
    with ThreadPoolExecutor(max_in_flight) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < max_in_flight:
                    running.add(pool.submit(tagged, waiting.popleft()))
                finished, running = wait(running, timeout=0.25, return_when=FIRST_COMPLETED)
                for future in finished:
                    future.result()
                tick()
        except BaseException:
            tag.cancel_all(running)
            raise


@contextmanager
def whole_folder(files: Files, path: str) -> Iterator[str]:
    """Yield a folder to write to, next to `path`, and rename it to `path` at the end: that is complete if it exists.

    When the context is left by an exception, or another start has written `path` meanwhile, the folder is deleted.
    """
    parent, _, name = path.rpartition("/")
    draft = f"{parent}/.{name}.{uuid.uuid4().hex[:12]}"
    try:
        yield draft
        files.rename(draft, path)
    finally:
        files.delete(draft)


@dataclass(frozen=True)
class JobTag:
    """A mark on Spark jobs, by which they are cancelled.

    Without Connect it is the context's: the session's own tags (`SparkSession.addTag`) are known only to the thread
    that set them, and `interruptTag` in another thread finds nothing (seen in Spark 4.2).
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

        Repeatedly: a thread that is just starting has no job yet that could be cancelled.
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
