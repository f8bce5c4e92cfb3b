"""Planning: the input becomes a snapshot of what is left to do, laid out in shards and waves.

    input ─ keys, statuses, token counts ─> rows ─ minus what the output holds ─> snapshot/{todo,aside,reused}

The input is read once, by the first step. Everything after that reads what the first step wrote under `work_dir`.
"""

import hashlib
import json
import math
import re
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from dolly_batch.config.job import JobConfig
from dolly_batch.errors import InputError, OutputError, Refused
from dolly_batch.spark.files import Files
from dolly_batch.spark.model import ModelFacts
from dolly_batch.spark.plan.estimate import slot_rate
from dolly_batch.spark.plan.existing import Retry, find_retryable, with_earlier_keys, with_existing
from dolly_batch.spark.plan.keys import (
    asked_settings,
    content_row_key,
    read_settings,
    request_header,
    request_key,
    row_key,
)
from dolly_batch.spark.plan.manifest import MANIFEST, Plan, PlanFolder, Wave
from dolly_batch.spark.plan.prepared_task import prepare_task
from dolly_batch.spark.plan.row_status import (
    CARRIED_OVER,
    EXISTING,
    SKIPPED,
    TODO,
    Facts,
    assign_status,
    mark_bad_ids,
    read_facts,
)
from dolly_batch.spark.plan.snapshot import SCHEMA, read_part, write_part
from dolly_batch.spark.preflight.gpus import generation_slots
from dolly_batch.spark.tables.columns import quoted_path
from dolly_batch.spark.tables.input import InputTable, unreadable_input_named
from dolly_batch.spark.tables.output import OutputTable
from dolly_batch.tasks.base import PreparedTask, TaskModel

SMALL_SHARD_ROWS = 32  # a small table is spread over the slots, but not into crumbs


@dataclass(frozen=True)
class Request:
    """What a start asks of the planner."""

    job: JobConfig
    retry: tuple[str, ...] = ()
    limit: int | None = None
    dry: bool = False
    """Only count: no snapshot is kept and no plan is opened."""


def make_plan(
    spark: SparkSession,
    request: Request,
    source: InputTable,
    target: OutputTable,
    model: ModelFacts,
    files: Files,
    work: str,
) -> tuple[PlanFolder, Plan] | Plan:
    """Plan what is left to do, under `work/<plan_id>`.

    Returns the folder and the plan; or, when nothing is left to do, the bare plan with its counts, and no folder.
    Raises InputError for bad ids and Refused for more rows than `limits.max_rows`; nothing is left behind then.
    """
    kind = "counting" if request.dry else "planning"
    draft = f"{work}/.{kind}-{request.job.name}-{uuid.uuid4().hex[:12]}"
    try:
        prepared = prepare_task(request.job, TaskModel(model.folder, model.max_positions))
        retry = find_retryable(request.job, request.retry, model.identity, target, files, work)
        return _Planner(spark, request, source, target, model, prepared, retry, files, work, draft).run()
    finally:
        files.delete(draft)


def sweep_drafts(files: Files, work: str, name: str) -> None:
    """Delete the drafts that killed starts of this job have left. The caller holds the job's lock."""
    for found in files.list_names(work):
        if re.fullmatch(rf"\.planning-{re.escape(name)}-[0-9a-f]{{12}}", found):
            files.delete(f"{work}/{found}")


@dataclass(frozen=True)
class _Planner:
    spark: SparkSession
    request: Request
    source: InputTable
    target: OutputTable
    model: ModelFacts
    prepared: PreparedTask
    retry: Retry
    files: Files
    work: str
    draft: str

    @property
    def job(self) -> JobConfig:
        return self.request.job

    def run(self) -> tuple[PlanFolder, Plan] | Plan:
        with unreadable_input_named(self.job.input):
            keyed = self._kept(self._keyed(), "keyed")
        if self.source.ids:
            self._check_ids(keyed)
        self._check_merge()
        limited = self._limited(keyed)
        rows = self._kept(with_existing(limited, self.target, self.retry, self.model.max_positions), "rows")
        facts = read_facts(rows)
        plan = self._draft_plan(facts)
        if self.request.dry or self._is_done(plan):
            return plan
        if self.job.limits.max_rows is not None and facts.num(TODO) > self.job.limits.max_rows:
            raise Refused(
                f"{facts.num(TODO)} rows are left to answer, more than limits.max_rows = {self.job.limits.max_rows}"
            )
        waves = self._lay_out(rows, facts, plan.slots)
        return self._settle(plan, waves)

    def _kept(self, rows: DataFrame, name: str) -> DataFrame:
        """The same rows, written down and read back: what they cost is paid once."""
        write_part(self.files, rows, f"{self.draft}/{name}")
        return read_part(self.spark, self.files, f"{self.draft}/{name}")

    def _keyed(self) -> DataFrame:
        """Each input row with its keys, its token count, and its status where it cannot run."""
        source, job = self.source, self.job
        text = (F.lit(None) if source.context is None else source.context.column).cast("string")
        values = [chosen.column.cast("string") for chosen in source.values]
        rows = source.df.select(
            *(chosen.column.alias(f"id_{i}") for i, chosen in enumerate(source.ids)),
            *(chosen.column.alias(f"keep_{i}") for i, chosen in enumerate(source.kept)),
            (row_key(source.ids) if source.ids else F.lit("")).alias("row_key"),
            F.array(*values).cast("array<string>").alias("values"),
            text.alias("text"),
            F.when(F.length(text) > 0, text).alias("context"),
        )
        header = request_header(job, self.model.identity)
        # Keys are made of what is asked in the end: a row that did not have to be cut keeps its key.
        rows = assign_status(rows, self.model.folder, self.model.max_positions, self.prepared, job.limits.long_prompt)
        rows = rows.withColumn("request_key", request_key(header, F.col("instruction"), F.col("context")))
        kept = [F.col(f"keep_{i}") for i in range(len(source.kept))]
        if not source.ids:
            rows = rows.withColumn("row_key", content_row_key(F.col("request_key"), kept))
        return with_earlier_keys(rows, self.retry, kept, has_ids=bool(source.ids))

    def _check_ids(self, keyed: DataFrame) -> None:
        """Refuse null and duplicate ids, unless the job wants them as rows with a status."""
        counts = keyed.groupBy("row_key").count().filter((F.col("count") > 1) | F.col("row_key").isNull())
        bad = counts.agg(F.sum("count"), F.count("*"), F.sum(F.when(F.col("row_key").isNull(), F.col("count")))).first()
        num_rows = bad[0] or 0 if bad is not None else 0
        if num_rows == 0 or bad is None:
            return
        if self.job.input.on_bad_id == "status":
            if self.job.output.mode == "merge":
                raise InputError("input.on_bad_id: with output.mode merge ids must be unique; mend them, or use append")
            return
        columns = ", ".join(f"`{chosen.name}`" for chosen in self.source.ids)
        samples = counts.filter(F.col("row_key").isNotNull()).orderBy("row_key").limit(5).collect()
        shown = "; for example " + ", ".join(f"{row[0][1:81]!r} ({row[1]} times)" for row in samples) if samples else ""
        raise InputError(
            f"input.id ({columns}): {num_rows} rows have a null or repeated id ({bad[2] or 0} null){shown}. "
            "Ids must be unique; set input.on_bad_id: status to pass over such rows with the status duplicate_id"
        )

    def _check_merge(self) -> None:
        """Refuse to merge into a table that holds a row key more than once: both rows would become the new one."""
        table = self.target.read() if self.job.output.mode == "merge" else None
        if table is None:
            return
        keys = table.select(self.target.row_key().alias("row_key"))
        repeated = keys.groupBy("row_key").count().filter(F.col("count") > 1).orderBy("row_key").limit(3).collect()
        if repeated:
            shown = ", ".join(f"{row[0][1:81]!r} ({row[1]} times)" for row in repeated)
            raise OutputError(
                f"output {self.job.output.name}: mode merge needs one row for each id, and the table holds {shown}; "
                "go on with mode append, or delete the older rows first"
            )

    def _limited(self, keyed: DataFrame) -> DataFrame:
        if self.source.ids and self.job.input.on_bad_id == "status":
            keyed = mark_bad_ids(keyed)
        if self.request.limit is not None:
            keyed = keyed.orderBy("row_key", "request_key").limit(self.request.limit)
        return keyed

    def _work_s(self, facts: Facts) -> float:
        """Seconds that one slot would take for all rows to answer."""
        rate = slot_rate(
            self.model.num_parameters,
            self.model.on_gpu,
            self.job.engine.kind == "echo",
            self.prepared.num_new_tokens,
            self.job.plan.tokens_per_s,
        )
        return facts.num(TODO) * rate.row_s + facts.num_prompt_tokens * rate.prompt_token_s

    def _draft_plan(self, facts: Facts) -> Plan:
        job = self.job
        slots = job.plan.slots or generation_slots(self.spark, job.model.gpus)
        destination = self.target.destination()
        return Plan(
            plan_id=_plan_id(job.name, destination, facts),
            name=job.name,
            created_at=datetime.now(UTC).isoformat(timespec="microseconds"),
            header=request_header(job, self.model.identity),
            destination=destination,
            model=job.model.path,
            model_revision=self.model.revision,
            model_identity=self.model.identity,
            model_folder=self.model.folder,
            output_schema=self.target.schema.json(),
            num_ids=self.target.num_ids,
            num_rows=sum(facts.counts.values()),
            num_held=facts.num(EXISTING),
            num_reused=facts.num(CARRIED_OVER),
            num_aside=facts.num(SKIPPED),
            aside={status: count for (state, status), count in facts.counts.items() if state == SKIPPED and status},
            waves=(),
            num_prompt_tokens=facts.num_prompt_tokens,
            estimated_s=self._work_s(facts) / slots,
            slots=slots,
            retries=bool(self.request.retry),
            asked=asked_settings(job),
            reads=read_settings(job, self.request.limit),
            input_version=self.source.version,
            token_histogram=facts.histogram,
        )

    def _is_done(self, plan: Plan) -> bool:
        """Whether the output already is what this job would make of it."""
        fresh = plan.num_rows - plan.num_held - plan.num_reused
        table = self.target.read()
        if fresh or table is None:
            return False
        if self.job.output.mode != "overwrite":
            return True
        rows = read_part(self.spark, self.files, f"{self.draft}/rows")
        return _same_rows(self._as_published(rows), self._as_held(table))

    def _as_published(self, rows: DataFrame) -> DataFrame:
        return rows.select("row_key", "request_key", _hash([f"keep_{i}" for i in range(len(self.source.kept))]))

    def _as_held(self, table: DataFrame) -> DataFrame:
        keys = [self.target.row_key().alias("row_key"), F.col(self.target.own("request_key")).alias("request_key")]
        kept = [F.col(quoted_path(name)).alias(f"keep_{i}") for i, name in enumerate(self.target.kept_names)]
        return self._as_published(table.select(*keys, *kept))

    def _lay_out(self, rows: DataFrame, facts: Facts, slots: int) -> list[Wave]:
        """Write the snapshot: the rows to answer as one file a shard, the longest prompts first in each."""
        job, num_todo = self.job, facts.num(TODO)
        by_time = math.ceil(self._work_s(facts) / (60 * job.plan.shard_minutes))
        shards = max(by_time, math.ceil(num_todo / job.plan.max_shard_rows))
        shards = max(shards, min(slots, math.ceil(num_todo / SMALL_SHARD_ROWS)), 1)
        per_wave = job.plan.shards_per_slot * slots
        shard = F.pmod(F.xxhash64("row_key", "request_key"), F.lit(shards)).cast("int")
        todo = rows.filter(F.col("state") == TODO).withColumn("shard", shard)
        todo = todo.withColumn("wave", F.floor(F.col("shard") / per_wave).cast("int"))
        ordered = todo.repartition(min(shards, 1000), "shard").sortWithinPartitions(
            "wave", "shard", F.desc("num_prompt_tokens"), "request_key"
        )
        path = f"{self.draft}/snapshot/{TODO}"
        write_part(self.files, ordered.drop("state", "status", "error"), path, partition_by=("wave", "shard"))
        for state in (SKIPPED, CARRIED_OVER):
            if state == SKIPPED or facts.num(state):
                part = rows.filter(F.col("state") == state).drop("state", "instruction", "context")
                write_part(self.files, part, f"{self.draft}/snapshot/{state}")
        waves: dict[int, list[int]] = {}
        for wave, _, num_rows in todo.groupBy("wave", "shard").count().collect():
            waves.setdefault(wave, []).append(num_rows)
        return [Wave(wave, sum(shards), len(shards)) for wave, shards in sorted(waves.items())]

    def _settle(self, draft: Plan, waves: list[Wave]) -> tuple[PlanFolder, Plan]:
        """Move the snapshot to its name; the plan exists from here on."""
        plan = Plan(**{**draft.__dict__, "waves": tuple(waves)})
        for name in ("keyed", "rows"):
            self.files.delete(f"{self.draft}/{name}")
            self.files.delete(f"{self.draft}/{name}{SCHEMA}")
        self.files.write(f"{self.draft}/{MANIFEST}", plan.to_json())
        folder = PlanFolder(self.files, f"{self.work}/{plan.plan_id}")
        if folder.has(MANIFEST) and not folder.is_open:
            self.files.delete(folder.path)  # the same rows were planned, finished and have gone from the output since
        if not self.files.rename(self.draft, folder.path):
            theirs = folder.plan()
            if theirs is not None:  # another start made the same plan a moment ago
                return folder, theirs
        return folder, plan


def _plan_id(name: str, destination: str, facts: Facts) -> str:
    """A hash of the snapshot. It starts with a letter, so that no reader of folders takes it for a number."""
    text = json.dumps([name, destination, facts.digest])
    return "p" + hashlib.sha256(text.encode()).hexdigest()[:31]


def _hash(columns: list[str]) -> Column:
    if not columns:
        return F.lit("").alias("kept")
    return F.sha2(F.to_json(F.struct(*columns)), 256).alias("kept")


def _same_rows(left: DataFrame, right: DataFrame) -> bool:
    """Whether two frames hold the same rows, each as often."""
    tagged = left.withColumn("side", F.lit(1)).unionByName(right.withColumn("side", F.lit(-1)))
    sums = tagged.groupBy("row_key", "request_key", "kept").agg(F.sum("side").alias("n")).filter(F.col("n") != 0)
    return sums.isEmpty()
