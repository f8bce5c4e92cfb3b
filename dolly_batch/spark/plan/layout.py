"""Stage 3 of planning: the rows to answer are laid out in shards (files, one a task) and waves (Spark jobs)."""

import math

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from dolly_batch.config.job import PlanConfig
from dolly_batch.spark.decisions import CARRIED_OVER, SKIPPED, TODO
from dolly_batch.spark.files import Files
from dolly_batch.spark.plan.manifest import Wave
from dolly_batch.spark.plan.row_status import Facts
from dolly_batch.spark.plan.snapshot import write_part

MIN_SHARD_ROWS = 32  # a small table is spread over the slots, but not in smaller shards than this


def write_snapshot(
    rows: DataFrame, facts: Facts, work_s: float, slots: int, config: PlanConfig, files: Files, path: str
) -> list[Wave]:
    """Write the snapshot of the plan as folders of `path`, and return the waves of the rows to answer.

    A shard is one file, with the longest prompts first. `work_s` is what all rows would take on one slot. A state that
    no row has is no folder.
    """
    num_shards = _num_shards(facts.num(TODO), work_s, slots, config)
    shards_per_wave = config.shards_per_slot * slots
    shard = F.pmod(F.xxhash64("row_key", "request_key"), F.lit(num_shards)).cast("int")
    todo = rows.filter(F.col("state") == TODO).withColumn("shard", shard)
    todo = todo.withColumn("wave", F.floor(F.col("shard") / shards_per_wave).cast("int"))
    ordered = todo.repartition(min(num_shards, 1000), "shard").sortWithinPartitions(
        "wave", "shard", F.desc("num_prompt_tokens"), "request_key"
    )
    write_part(files, ordered.drop("state", "status", "error"), f"{path}/{TODO}", partition_by=("wave", "shard"))
    for state in (SKIPPED, CARRIED_OVER):
        if facts.num(state):
            part = rows.filter(F.col("state") == state).drop("state", "instruction", "context")
            write_part(files, part, f"{path}/{state}")
    if num_shards == 1:
        return [Wave(0, facts.num(TODO), 1)] if facts.num(TODO) else []
    rows_of_shards: dict[int, list[int]] = {}
    for wave, _, num_rows in todo.groupBy("wave", "shard").count().collect():
        rows_of_shards.setdefault(wave, []).append(num_rows)
    return [Wave(wave, sum(shards), len(shards)) for wave, shards in sorted(rows_of_shards.items())]


def _num_shards(num_todo: int, work_s: float, slots: int, config: PlanConfig) -> int:
    by_time = math.ceil(work_s / (60 * config.shard_minutes))
    by_rows = math.ceil(num_todo / config.max_shard_rows)
    for_all_slots = min(slots, math.ceil(num_todo / MIN_SHARD_ROWS))
    return max(by_time, by_rows, for_all_slots, 1)
