"""Generating: each unfinished wave of a plan is one Spark job that ends in a folder of staged answers.

Each start writes a wave to a folder of its own and renames it to `staging/wave=N` when Spark has committed it. So a
staged wave is complete, and two starts cannot mix their files.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from dolly_batch.cascade.proxy import Proxy
from dolly_batch.config.job import JobConfig
from dolly_batch.console import ProgressLine
from dolly_batch.spark.files import literal
from dolly_batch.spark.generate.cascade import find_proxy, sampled
from dolly_batch.spark.generate.jobs import Job, describe, run_watched, whole_folder
from dolly_batch.spark.generate.limits import Budget, ErrorLimit, Limits
from dolly_batch.spark.generate.progress import EndedTasks
from dolly_batch.spark.generate.shard import ShardTask, answer_shard, staged_schema
from dolly_batch.spark.generate.tracker import Tracker
from dolly_batch.spark.model import ModelFacts
from dolly_batch.spark.plan.manifest import Plan, PlanFolder, Wave
from dolly_batch.spark.plan.prepared_task import prepare_task
from dolly_batch.spark.preflight.gpus import generation_slots, gpu_profile
from dolly_batch.spark.session.conf import session_conf
from dolly_batch.spark.session.session import is_connect
from dolly_batch.tasks.base import PreparedTask

TODO_SCHEMA = T.StructType(
    [
        T.StructField("row_key", T.StringType()),
        T.StructField("request_key", T.StringType()),
        T.StructField("instruction", T.StringType()),
        T.StructField("context", T.StringType()),
        T.StructField("num_prompt_tokens", T.IntegerType()),
        # Of rows that resume a partial answer; the snapshots of other plans do not have them.
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


@dataclass(frozen=True)
class Generation:
    """The generating of one start: which waves are left, and how to run them."""

    spark: SparkSession
    job: JobConfig
    folder: PlanFolder
    plan: Plan
    model: ModelFacts
    check: Callable[[], None]
    """Raises when this start must stop because another one has taken over."""

    @cached_property
    def _prepared(self) -> PreparedTask:
        return prepare_task(self.job, self.model.task_model)

    @cached_property
    def tracker(self) -> Tracker:
        """Counts what the tasks do: by their files, or, where only Hadoop reaches the work folder, as they end."""
        ended = None
        if self.folder.progress(0) is None and not is_connect(self.spark):
            ended = self.spark.sparkContext.accumulator({}, EndedTasks())
        return Tracker(self.folder, self.plan, ended)

    def left(self) -> list[Wave]:
        """The waves without staged answers, in order."""
        done = self.folder.staged_waves()
        return [wave for wave in self.plan.waves if wave.number not in done]

    def run(self, tick: Callable[[], None], finished: Callable[[], None] = lambda: None) -> None:
        """Run what is left: `plan.waves_in_flight` waves at a time, so that no slot waits for the end of one; more
        where the slots that there are now, be they more than when it was planned, would not all have work.

        `tick` is called about four times a second, `finished` when a wave is staged, in its thread. Any exception,
        KeyboardInterrupt among them, cancels the running jobs; finished waves stay.
        """
        left, sample = self.left(), {wave.number for wave in sampled(self.plan)}
        run = partial(self._run_waves, tick=tick, finished=finished)
        with session_conf(self.spark, ONE_FILE_A_TASK):
            run([wave for wave in left if wave.number in sample], None)
            others = [wave for wave in left if wave.number not in sample]
            run(others, self._proxy() if sample and others else None)

    def _run_waves(
        self, waves: Sequence[Wave], proxy: Proxy | None, tick: Callable[[], None], finished: Callable[[], None]
    ) -> None:
        if not waves:
            return

        def run(wave: Wave) -> None:
            self._run_wave(wave, proxy)
            finished()

        jobs = [Job(partial(run, wave), wave.num_shards) for wave in waves]
        at_least = self.job.plan.waves_in_flight
        run_watched(self.spark, jobs, tick, at_least=at_least, num_wanted=lambda: at_least * self._num_slots())

    def _proxy(self) -> Proxy:
        """The proxy of the cascade, now that its sample is answered."""
        answers = self.answers(wave.number for wave in sampled(self.plan))
        return find_proxy(self.job, self.folder, self.plan, answers, self.check)

    def _num_slots(self) -> int:
        """Tasks that can run at once now; where that cannot be asked at no cost, when it was planned."""
        if self.job.plan.slots or is_connect(self.spark):
            return self.plan.slots
        return generation_slots(self.spark, self.job.model.gpus)

    def answers(self, waves: Iterable[int]) -> DataFrame:
        """The answers of finished waves, in the current schema: an earlier version's lack some columns."""
        paths = [literal(self.folder.staged(wave)) for wave in sorted(waves)]
        return self.spark.read.schema(staged_schema(self.job.task)).parquet(*paths)

    def _run_wave(self, wave: Wave, proxy: Proxy | None) -> None:
        source = self.folder.of("snapshot", "todo", f"wave={wave.number}")
        todo = self.spark.read.schema(TODO_SCHEMA).parquet(literal(source)).select(*TODO_SCHEMA.names)
        task = ShardTask(
            spec=self.model.engine_spec(self.job),
            schema=staged_schema(self.job.task),
            task=self._prepared.task,
            seed=self.job.generation.seed,
            shares=self._prepared.shares,
            progress=self.tracker.begin(wave),
            cascades=self.job.task.cascade is not None,
            proxy=proxy,
        )
        profile = gpu_profile(self.spark, self.job.model.gpus)
        describe(self.spark, self.plan.plan_id, _tagged(self.tracker.describe(wave), self.job.tags))
        answered = todo.mapInPandas(partial(answer_shard, task), task.schema, profile=profile)
        with whole_folder(self.folder.files, self.folder.staged(wave.number)) as draft:
            answered.write.parquet(draft)
            self.check()
        self.tracker.finish(wave)


def _tagged(text: str, tags: Mapping[str, str]) -> str:
    return " ".join([text, *(f"[{name}={value}]" for name, value in sorted(tags.items()))])


def generate(generation: Generation) -> None:
    """Run the waves that are left, with a live line on a terminal and lines in the log elsewhere, within the limits of
    the job.

    Raises Stopped when its GPU hours or its money are spent or too many rows fail, and whatever ends the run.
    """
    folder, plan, job, tracker = generation.folder, generation.plan, generation.job, generation.tracker
    num_rows = {wave.number: wave.num_rows for wave in plan.waves}
    errors, budget = ErrorLimit(job.limits.max_error_share), Budget(job.limits, job.model.gpus)
    limits = Limits(errors, budget, num_rows, generation.answers)
    limits.check(folder.staged_waves())  # those of earlier starts
    with ProgressLine(plan.num_todo) as line, closing(tracker):
        tracker.speaks = not line.is_live

        def tick() -> None:
            if progress := tracker.look():
                line.show(progress)

        generation.run(tick, lambda: limits.check(folder.staged_waves()))
