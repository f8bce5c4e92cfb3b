"""Spark jobs that run in threads, are watched and cancelled together, and leave whole folders or none."""

import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import SparkSession

from dolly_batch.spark.files import Files
from dolly_batch.spark.session.session import is_connect

MAX_IN_FLIGHT = 100
TICK_S = 0.25
LOOK_S = 2.0


@dataclass(frozen=True)
class Job:
    """A function that starts Spark jobs, and how many tasks they have."""

    run: Callable[[], None]
    num_tasks: int = 1


def run_watched(
    spark: SparkSession,
    jobs: Sequence[Job],
    tick: Callable[[], None],
    *,
    at_least: int = 1,
    num_wanted: Callable[[], int] = lambda: 1,
) -> None:
    """Run jobs in their order, each in a thread: `at_least` so many at a time, and more while they have fewer tasks
    than `num_wanted` says, which is asked again and again.

    `tick` is called about four times a second, in a thread of its own: however long it takes, jobs are started. Any
    exception, of a job, of `tick` or KeyboardInterrupt, cancels the running jobs and is raised when their threads have
    ended.
    """
    tag = JobTag(spark)

    def tagged(work: Callable[[], None]) -> None:
        tag.mark()
        work()

    over = threading.Event()
    with ThreadPoolExecutor(MAX_IN_FLIGHT + 1) as pool:
        watch = pool.submit(tagged, lambda: _watch(over, tick))
        running: dict[Future[None], int] = {}
        try:
            waiting = deque(jobs)
            while waiting or running:
                while waiting and _has_room(running, at_least, num_wanted):
                    job = waiting.popleft()
                    running[pool.submit(tagged, job.run)] = job.num_tasks
                for future in wait({*running, watch}, timeout=LOOK_S, return_when=FIRST_COMPLETED).done:
                    future.result()
                    del running[future]
            over.set()
            watch.result()
        except BaseException:
            over.set()
            tag.cancel_all({*running, watch})
            raise


def _watch(over: threading.Event, tick: Callable[[], None]) -> None:
    while not over.wait(TICK_S):
        tick()
    tick()


def _has_room(running: dict[Future[None], int], at_least: int, num_wanted: Callable[[], int]) -> bool:
    if len(running) < at_least:
        return True
    return len(running) < MAX_IN_FLIGHT and sum(running.values()) < num_wanted()


def describe(spark: SparkSession, group: str, text: str) -> None:
    """What Spark's UI shows of the jobs that this thread starts from now on. Connect has no such thing."""
    if not is_connect(spark):
        spark.sparkContext.setJobGroup(group, text)


@contextmanager
def described(spark: SparkSession, text: str) -> Iterator[None]:
    """The same for the jobs that this thread starts inside of the context; afterwards it says what it said before."""
    if is_connect(spark):
        yield
        return
    context, key = spark.sparkContext, "spark.job.description"
    before = context.getLocalProperty(key)
    context.setLocalProperty(key, text)
    try:
        yield
    finally:
        context.setLocalProperty(key, before)  # type: ignore[arg-type]


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
