"""Generating: each unfinished wave of a plan is one Spark job that ends in a folder of staged answers.

A wave is written to a folder of this start's own and renamed to `staging/wave=N` when Spark has committed it. So a
finished wave is there whole, an unfinished one not at all, and two starts cannot mix their files.
"""

import uuid
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cached_property, partial

from pyspark.sql import SparkSession
from pyspark.sql import types as T

from dolly_batch.config.job import JobConfig
from dolly_batch.spark.generate.cancel import JobTag
from dolly_batch.spark.generate.shard import ShardTask, answer_shard, staged_schema
from dolly_batch.spark.model import ModelFacts
from dolly_batch.spark.plan.manifest import Plan, PlanFolder, Wave
from dolly_batch.spark.plan.prepared_task import Asking, open_asking
from dolly_batch.spark.preflight.gpus import gpu_profile
from dolly_batch.spark.session.conf import session_conf

TODO_SCHEMA = T.StructType(
    [
        T.StructField("row_key", T.StringType()),
        T.StructField("request_key", T.StringType()),
        T.StructField("instruction", T.StringType()),
        T.StructField("context", T.StringType()),
        T.StructField("num_prompt_tokens", T.IntegerType()),
        # Of rows that go on with a begun answer; the snapshots of other plans do not have them.
        T.StructField("begun_text", T.StringType()),
        T.StructField("begun_tokens", T.IntegerType()),
        T.StructField("max_new_tokens", T.IntegerType()),
    ]
)

# One file is one task: with an open cost as high as the largest split, no two files share a partition, and no file of
# a shard (a few megabytes) is ever split.
ONE_FILE_A_TASK = {
    "spark.sql.files.maxPartitionBytes": str(4 << 30),
    "spark.sql.files.openCostInBytes": str(4 << 30),
}


@dataclass
class Generation:
    """The generating of one start: which waves are left, and how to run them."""

    spark: SparkSession
    job: JobConfig
    folder: PlanFolder
    plan: Plan
    model: ModelFacts
    check: Callable[[], None]
    """Raises when this start must not go on (another one has taken over)."""
    start_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @cached_property
    def _asking(self) -> Asking:
        return open_asking(self.job, self.model.folder, self.model.max_positions)

    @cached_property
    def _tag(self) -> JobTag:
        return JobTag(self.spark)

    def left(self) -> list[Wave]:
        """The waves without staged answers, in order."""
        done = self.folder.staged_waves()
        return [wave for wave in self.plan.waves if wave.number not in done]

    def run(self, tick: Callable[[], None]) -> None:
        """Run what is left, `plan.waves_in_flight` waves at a time, so that no slot waits for the end of one.

        `tick` is called about four times a second. Any exception, KeyboardInterrupt among them, cancels the running
        jobs; finished waves stay.
        """
        waiting = self.left()
        running: set[Future[None]] = set()
        with session_conf(self.spark, ONE_FILE_A_TASK), ThreadPoolExecutor(self.job.plan.waves_in_flight) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < self.job.plan.waves_in_flight:
                        running.add(pool.submit(self._run_wave, waiting.pop(0)))
                    finished, running = wait(running, timeout=0.25, return_when=FIRST_COMPLETED)
                    for future in finished:
                        future.result()
                    tick()
            except BaseException:
                self._tag.cancel_all(running)
                raise

    def _run_wave(self, wave: Wave) -> None:
        self._tag.mark()
        own = self.folder.of("staging", f".wave={wave.number}.{self.start_id}")
        source = self.folder.of("snapshot", "todo", f"wave={wave.number}")
        todo = self.spark.read.schema(TODO_SCHEMA).parquet(source).select(*TODO_SCHEMA.names)
        task = ShardTask(
            spec=self.model.engine_spec(self.job),
            kind=self.job.task.kind,
            task=self._asking.task,
            seed=self.job.generation.seed,
            shares=self._asking.shares,
            progress=self.model.progress_folder(self.folder, wave.number),
        )
        profile = gpu_profile(self.spark, self.job.model.gpus)
        answered = todo.mapInPandas(partial(answer_shard, task), staged_schema(task.kind), profile=profile)
        answered.write.mode("overwrite").parquet(own)
        self.check()
        if not self.folder.files.rename(own, self.folder.staged(wave.number)):
            self.folder.files.delete(own)
