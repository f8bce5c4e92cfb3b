"""The sample of a cascade: which questions the model answers first, in waves of their own.

It is drawn among the different questions, each as likely as any other, by a hash of its request key and the job's seed.
What a cascade promises is about the questions that are left: they are as if drawn with the sample.
"""

import math
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dolly_batch.cascade.bounds import CHECKED_SHARE
from dolly_batch.config.job import JobConfig


@dataclass(frozen=True)
class Sample:
    """Questions whose hash is at most `last` are in it; they go to the first `num_shards` shards."""

    seed: int
    last: int
    num_shards: int
    num_waves: int

    def place(self, shard: Column, shards_per_wave: int) -> Column:
        """The shard of each question, behind the waves of the sample where it is not in it."""
        own = F.pmod(F.xxhash64("row_key", "request_key"), F.lit(self.num_shards))
        return F.when(_drawn_by(self.seed) <= self.last, own).otherwise(shard + self.num_waves * shards_per_wave)


def sample_size(job: JobConfig, num_questions: int) -> int:
    """Questions of the sample, 0 where all are left to the model: without a cascade, and for too few of them.

    At least as many are to be left as the bounds are checked on: what holds of those says too little of fewer.
    """
    cascade = job.task.cascade
    return 0 if cascade is None or num_questions < least_questions(job) else int(cascade.sample)


def least_questions(job: JobConfig) -> int:
    """Fewer different questions are all answered by the model."""
    sample: int = job.task.cascade.sample
    return math.ceil(sample * (1 + CHECKED_SHARE))


def draw_sample(job: JobConfig, questions: DataFrame, num_shards: int, shards_per_wave: int) -> Sample:
    """Draw the sample of a job's cascade; it is laid out in so many shards."""
    drawn = questions.select(_drawn_by(job.generation.seed).alias("drawn"))
    first = drawn.orderBy("drawn").limit(job.task.cascade.sample)
    last = first.agg(F.max("drawn")).collect()[0][0]
    return Sample(job.generation.seed, last, num_shards, math.ceil(num_shards / shards_per_wave))


def _drawn_by(seed: int) -> Column:
    return F.xxhash64(F.lit(f"sample {seed}"), "request_key")
