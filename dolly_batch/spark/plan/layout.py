"""Stage 3 of planning: the questions are laid out in shards (files, one a task) and waves (Spark jobs)."""

import heapq
import json
import math
from collections.abc import Sequence

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from dolly_batch.config.job import PlanConfig
from dolly_batch.spark.decisions import TODO
from dolly_batch.spark.files import Files
from dolly_batch.spark.plan.beginnings import Beginning
from dolly_batch.spark.plan.estimate import EXPECTED_ANSWER_TOKENS
from dolly_batch.spark.plan.manifest import Wave
from dolly_batch.spark.plan.sample import Sample
from dolly_batch.spark.plan.snapshot import read_part, write_part
from dolly_batch.tasks.base import PREFILL_SPEEDUP

MIN_SHARD_ROWS = 32  # a small table is spread over the slots, but not in smaller shards than this
_BUCKETS_PER_SHARD = 16
_PIECES = 1024
MIN_WAVE_SLOTS = 2
MAX_WAVES = 100


def count_shards(num_questions: int, work_s: float, slots: int, config: PlanConfig) -> int:
    """How many shards so many questions make. `work_s` is what all of them would take on one slot."""
    by_time = math.ceil(work_s / (60 * config.shard_minutes))
    by_rows = math.ceil(num_questions / config.max_shard_rows)
    for_all_slots = min(slots, math.ceil(num_questions / MIN_SHARD_ROWS))
    return max(by_time, by_rows, for_all_slots, 1)


def count_wave_shards(num_shards: int, config: PlanConfig) -> int:
    """How many shards make a wave: a hundredth of the work, which is what a crash may cost, or some minutes of it.

    How many slots there are at this moment says nothing: a cluster that grows runs more waves at once. A job that names
    its slots has waves of their size.
    """
    if config.slots is not None:
        return config.shards_per_slot * config.slots
    return max(MIN_WAVE_SLOTS * config.shards_per_slot, math.ceil(num_shards / MAX_WAVES))


def write_questions(
    questions: DataFrame,
    num_questions: int,
    num_shards: int,
    shards_per_wave: int,
    beginning: Beginning | None,
    files: Files,
    path: str,
    sample: Sample | None = None,
) -> list[Wave]:
    """Write the questions as the snapshot's part `path`/todo, and return their waves.

    A shard is one file, with the longest prompts first. With a `beginning`, questions that begin alike are in one
    shard, one behind the other, and shards are about equal in what they take. The questions of a `sample` make waves of
    their own, before the others.
    """
    if beginning is None:
        shard, group = F.pmod(F.xxhash64("row_key", "request_key"), F.lit(num_shards)), F.lit(0)
    else:
        group = beginning.group()
        shard = _balanced(questions, group, num_shards)
    if sample is not None:
        shard = sample.place(shard, shards_per_wave)
        num_shards += sample.num_waves * shards_per_wave
    laid_out = questions.withColumn("shard", shard.cast("int")).withColumn("group", group)
    laid_out = laid_out.withColumn("wave", F.floor(F.col("shard") / shards_per_wave).cast("int"))
    by_shard = laid_out.repartition(min(num_shards, 1000), "shard")
    order = [F.desc("num_prompt_tokens"), F.col("request_key")]
    if beginning is not None:
        longest = F.max("num_prompt_tokens").over(Window.partitionBy("shard", "group"))
        by_shard = by_shard.withColumn("longest", longest)
        order = [F.desc("longest"), F.col("group"), *order]
    ordered = by_shard.sortWithinPartitions("wave", "shard", *order).drop("group", "longest")
    write_part(files, ordered, f"{path}/{TODO}", partition_by=("wave", "shard"))
    if num_shards == 1:
        return [Wave(0, num_questions, 1)] if num_questions else []
    return _waves(read_part(questions.sparkSession, files, f"{path}/{TODO}"))


def _waves(written: DataFrame) -> list[Wave]:
    rows_of_shards: dict[int, list[int]] = {}
    for wave, _, num_rows in written.groupBy("wave", "shard").count().collect():
        rows_of_shards.setdefault(wave, []).append(num_rows)
    return [Wave(wave, sum(shards), len(shards)) for wave, shards in sorted(rows_of_shards.items())]


def _balanced(questions: DataFrame, group: Column, num_shards: int) -> Column:
    """The shard of a question: its group's bucket is put where there is least, a bucket too big for a shard in pieces.

    The groups are counted by bucket, so that the driver holds a few numbers for each shard however many they are.
    """
    num_buckets = num_shards * _BUCKETS_PER_SHARD
    bucket = F.pmod(group, F.lit(num_buckets)).cast("int")
    cost = F.coalesce("num_prompt_tokens", F.lit(0)) / PREFILL_SPEEDUP + EXPECTED_ANSWER_TOKENS
    costs = [0.0] * num_buckets
    for at, total in questions.groupBy(bucket.alias("bucket")).agg(F.sum(cost)).collect():
        costs[at] = total
    # As one literal that the optimizer parses once: a table of the same would be a job of its own to make, and a join.
    shards_of = F.from_json(F.lit(json.dumps(shards_of_buckets(costs, num_shards))), "array<array<int>>")
    shards = F.element_at(shards_of, bucket + 1)
    piece = F.pmod(F.xxhash64("row_key", "request_key"), F.lit(_PIECES))
    return F.element_at(shards, (F.floor(piece * F.size(shards) / _PIECES) + 1).cast("int"))


def shards_of_buckets(costs: Sequence[float], num_shards: int) -> list[list[int]]:
    """For each bucket the shards of its pieces, often one: the largest piece first, each to the cheapest shard."""
    target = sum(costs) / num_shards
    num_pieces = [min(_PIECES, max(1, math.ceil(cost / target - 0.5))) if target else 1 for cost in costs]
    pieces = [(cost / count, bucket) for bucket, (cost, count) in enumerate(zip(costs, num_pieces, strict=True))]
    shards: list[list[int]] = [[] for _ in costs]
    loads = [(0.0, shard) for shard in range(num_shards)]
    for cost, bucket in sorted(pieces, reverse=True):
        for _ in range(num_pieces[bucket]):
            load, shard = heapq.heappop(loads)
            shards[bucket].append(shard)
            heapq.heappush(loads, (load + cost, shard))
    return shards
