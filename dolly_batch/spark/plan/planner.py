"""Planning: the input becomes a snapshot of the rows to answer, laid out in shards and waves.

    input ── 1. key ──> keyed ── 2. match ──> rows ── 3. lay out ──> snapshot/{todo,aside,reused}, waves

1. Each row gets its keys, its token count, and a status where it cannot run (input_rows.py).
2. Rows are matched with those that the output holds: which of them are asked, or asked again (existing.py).
3. Of the rows to ask, those that ask the same become one question (questions.py); the questions are laid out in shards
   and waves (layout.py), those that begin alike together (beginnings.py).

The input is read once, by the first stage. Each later stage reads what the one before it wrote under `work_dir`.
"""

import hashlib
import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from dolly_batch.config.job import JobConfig
from dolly_batch.errors import Refused
from dolly_batch.spark.decisions import ANSWERS, ASKING, CARRIED_OVER, COPIED, EXISTING, SKIPPED, TODO
from dolly_batch.spark.files import Files
from dolly_batch.spark.model import ModelFacts
from dolly_batch.spark.options import Options
from dolly_batch.spark.plan.beginnings import find_sharing
from dolly_batch.spark.plan.cost import refuse_expensive
from dolly_batch.spark.plan.estimate import slot_rate
from dolly_batch.spark.plan.existing import Retry, check_row_keys, find_retryable, is_up_to_date, with_existing
from dolly_batch.spark.plan.input_rows import check_ids, key_input, limit_rows
from dolly_batch.spark.plan.keys import input_settings, request_header, task_settings
from dolly_batch.spark.plan.known_answers import known_answers, known_questions, with_known
from dolly_batch.spark.plan.layout import count_shards, count_wave_shards, write_questions
from dolly_batch.spark.plan.lookup import FEW_ROWS, found_of_few, found_rows, meets_none
from dolly_batch.spark.plan.manifest import BESIDE, MANIFEST, Plan, PlanFolder
from dolly_batch.spark.plan.measured import measured_factor, rate_name
from dolly_batch.spark.plan.prepared_task import prepare_task, settled
from dolly_batch.spark.plan.questions import asking_rows, distinct_questions, shares_answers
from dolly_batch.spark.plan.row_status import Facts, read_facts
from dolly_batch.spark.plan.sample import Sample, draw_sample, sample_size
from dolly_batch.spark.plan.snapshot import read_part, write_part
from dolly_batch.spark.preflight.gpus import generation_slots
from dolly_batch.spark.tables.input import InputTable, unreadable_input_named
from dolly_batch.spark.tables.output import OutputTable
from dolly_batch.spark.tables.row_rules import check_rows
from dolly_batch.tasks.base import PreparedTask


def _no_check() -> None:
    """For who holds no lock."""


@dataclass(frozen=True)
class Planned:
    """A plan; and its folder, None where it was only counted or nothing is left to do."""

    plan: Plan
    folder: PlanFolder | None


def make_plan(
    options: Options,
    source: InputTable,
    target: OutputTable,
    model: ModelFacts,
    files: Files,
    work: str,
    *,
    check: Callable[[], None] = _no_check,
    dry: bool = False,
) -> Planned:
    """Plan what is left to do, under `work/<plan_id>`; with `dry`, only count it.

    `check` raises when this start has lost the job's lock; it is called before the plan gets its name.
    Raises InputError for bad ids, OutputError for row keys that `merge` cannot tell apart, and Refused for more rows
    than `limits.max_rows` or more money than `limits.max_cost`; nothing is left on disk then.
    """
    job = settled(target.job, model.task_model)
    target = replace(target, job=job)
    draft = _Draft(
        target.spark, files, f"{work}/.{'counting' if dry else 'planning'}-{job.name}-{uuid.uuid4().hex[:12]}"
    )
    try:
        prepared = prepare_task(job, model.task_model)
        retry = find_retryable(job, options.retry, model.identity, target, files, work)
        if source.version is None and job.input.table is None:  # files, which are read from here on
            source = replace(source, opened_at=datetime.now(UTC))
        with unreadable_input_named(job.input):
            keyed = draft.saved(key_input(source, job, model, prepared, retry), "keyed")
        if source.ids:
            check_ids(keyed, source, job)
        seen = None if dry else target.format.seen(target)  # before the output is read
        shares = shares_answers(job, prepared, retry)
        reuses = shares and job.output.reuse_answers
        is_few = target.exists() and keyed.count() <= FEW_ROWS
        found = _found(draft, keyed, target, retry, reuses) if is_few else found_rows(target, retry)
        check_row_keys(target, found)
        limited = limit_rows(keyed, source, job, options.limit)
        rows = with_existing(limited, found, target, retry, model.max_positions)
        if limited is not keyed or found is not None:  # else nothing was joined or sorted that were to be kept
            rows = draft.saved(rows, "rows")
        draft.keep(seen, only_adds=_only_adds(job, options, rows, found, is_few))
        check_rows(target, rows)
        facts = read_facts(rows, shares)
        known = _known(draft, rows, found, target, retry, facts) if reuses and found is not None else None
        if known is not None:
            rows = draft.saved(with_known(rows, known), "known_rows")
            facts = read_facts(rows, shares)
        factor = _rate_factor(job, model, files, work)
        work_s = factor * _work_s(target, model, prepared, facts)
        plan = _counted(options, source, target, model, facts, work_s)
        plan = replace(plan, rate_factor=0.0 if factor == 1.0 else factor)
        if plan.num_rows == plan.num_answered_before and (dry or is_up_to_date(rows, target)):
            return Planned(plan, None)
        max_rows = job.limits.max_rows
        if not dry and max_rows is not None and facts.num(TODO) > max_rows:
            raise Refused(f"{facts.num(TODO)} rows are left to answer, more than limits.max_rows = {max_rows}")
        if not dry:
            refuse_expensive(target.spark, job, plan)
        questions = rows.filter(F.col("state") == TODO).drop("state", "status", "error")
        if plan.num_shared:
            questions = draft.saved(distinct_questions(questions), "questions")
        num_shards = count_shards(facts.num_questions, work_s, plan.slots, job.plan)
        sharing = find_sharing(questions, facts.num_questions, num_shards)
        plan = replace(plan, prefix_share=round(sharing.share, 4))
        if dry:
            return Planned(plan, None)
        snapshot, per_wave = f"{draft.path}/snapshot", count_wave_shards(num_shards, job.plan)
        sample = _sample(job, questions, facts, work_s, plan.slots, per_wave)
        _write_rows(rows, plan, files, snapshot)
        if known is not None:
            write_part(files, known, f"{snapshot}/{ANSWERS}")
        waves = write_questions(
            questions, facts.num_questions, num_shards, per_wave, sharing.beginning, files, snapshot, sample
        )
        plan = replace(plan, waves=tuple(waves), num_sample_waves=0 if sample is None else sample.num_waves)
        return draft.opened(plan, work, check)
    finally:
        files.delete(draft.path)


def delete_drafts(files: Files, work: str, name: str) -> None:
    """Delete the drafts that killed starts of this job have left. The caller holds the job's lock."""
    for draft in files.list_names(work):
        if re.fullmatch(rf"\.planning-{re.escape(name)}-[0-9a-f]{{12}}", draft):
            files.delete(f"{work}/{draft}")


@dataclass(frozen=True)
class _Draft:
    """The folder in which a plan is made, until the plan exists and it gets the plan's name."""

    spark: SparkSession
    files: Files
    path: str

    def saved(self, rows: DataFrame, name: str) -> DataFrame:
        """The same rows, written and read back: they are computed once, however often they are used."""
        write_part(self.files, rows, f"{self.path}/{name}")
        return read_part(self.spark, self.files, f"{self.path}/{name}")

    def keep(self, seen: dict[str, Any] | None, *, only_adds: bool) -> None:
        """Keep what was seen of the output, for the commit; and whether that will only add rows to those."""
        if seen is not None:
            self.files.write(f"{self.path}/{BESIDE}", json.dumps({**seen, "only_adds": only_adds}))

    def opened(self, plan: Plan, work: str, check: Callable[[], None]) -> Planned:
        """Rename the draft to the plan's name: from here on the plan exists.

        A start that has lost the lock stops here: the other one has deleted the draft, and may have finished this plan.
        So the manifest is written before the lock is looked at: nothing is written into a draft afterwards.
        """
        for name in self.files.list_names(self.path):
            if name not in ("snapshot", BESIDE):
                self.files.delete(f"{self.path}/{name}")
        self.files.write(f"{self.path}/{MANIFEST}", plan.to_json())
        check()
        folder = PlanFolder(self.files, f"{work}/{plan.plan_id}")
        if folder.has(MANIFEST) and not (folder.is_open and folder.holds_rows(plan)):
            self.files.delete(folder.path)  # the same rows were planned and finished, and have left the output since
        if not self.files.rename(self.path, folder.path):
            existing = folder.plan()
            if existing is not None:  # another start made the same plan a moment ago
                return Planned(existing, folder)
        return Planned(plan, folder)


def _rate_factor(job: JobConfig, model: ModelFacts, files: Files, work: str) -> float:
    if job.plan.tokens_per_s is not None:
        return 1.0
    return measured_factor(files, work, rate_name(request_header(job, model.identity), model.device(job)))


def _work_s(target: OutputTable, model: ModelFacts, prepared: PreparedTask, facts: Facts) -> float:
    """Seconds that one slot would take for all rows to answer."""
    job = target.job
    given, is_echo = job.plan.tokens_per_s, job.engine.kind == "echo"
    rate = slot_rate(model.num_parameters, model.on_gpu, is_echo, prepared.num_new_tokens, given, model.gpu_names)
    return rate.seconds(facts.num_questions, facts.num_prompt_tokens)


def _sample(
    job: JobConfig, questions: DataFrame, facts: Facts, work_s: float, slots: int, per_wave: int
) -> Sample | None:
    """The sample of a cascade, None where the model answers all."""
    size = sample_size(job, facts.num_questions)
    if not size:
        return None
    num_shards = count_shards(size, work_s * size / facts.num_questions, slots, job.plan)
    return draw_sample(job, questions, num_shards, per_wave)


def _found(draft: _Draft, keyed: DataFrame, target: OutputTable, retry: Retry, reuses: bool) -> DataFrame | None:
    """What few rows find in the output, kept: it is looked at more than once."""
    found = found_of_few(target, keyed, retry, reuses)
    return found if found is None else draft.saved(found, "found")


def _only_adds(job: JobConfig, options: Options, rows: DataFrame, found: DataFrame | None, is_few: bool) -> bool:
    """Whether no row that is planned replaces one of the output, as far as that is known at no cost."""
    if options.retry or job.output.mode == "overwrite":
        return False
    return job.output.mode == "append" or found is None or (is_few and meets_none(rows, found))


def _known(
    draft: _Draft, rows: DataFrame, found: DataFrame, target: OutputTable, retry: Retry, facts: Facts
) -> DataFrame | None:
    """The answers that the output has to what rows are to ask, None where it has none."""
    table = target.read() if facts.num_questions else None
    if table is None:
        return None
    known = draft.saved(known_questions(rows, found, retry, facts.num_questions), "known")
    num_known = known.count()
    if not num_known:
        return None
    return draft.saved(known_answers(known, target, table, retry, num_known), "known_answers")


def _write_rows(rows: DataFrame, plan: Plan, files: Files, path: str) -> None:
    """Write the rows that are no questions as parts of the snapshot. A part that has no row is not there."""
    state = F.col("state")
    counts = {SKIPPED: plan.num_skipped, CARRIED_OVER: plan.num_carried_over, COPIED: plan.num_copied}
    for name, count in counts.items():
        if count:
            part = rows.filter(state == name).drop("state", "instruction", "context")
            write_part(files, part, f"{path}/{name}")
    if plan.num_shared:
        asking = asking_rows(rows.filter(state == TODO).drop("state", "status", "error"))
        write_part(files, asking, f"{path}/{ASKING}")


def _counted(
    options: Options, source: InputTable, target: OutputTable, model: ModelFacts, facts: Facts, work_s: float
) -> Plan:
    """The plan without its waves."""
    job, destination = target.job, target.destination()
    slots = job.plan.slots or generation_slots(target.spark, job.model.gpus)
    return Plan(
        plan_id=_plan_id(job.name, destination, facts),
        name=job.name,
        # As old as what was read: an answer to what was asked before takes no newer one's place, however late it comes.
        created_at=source.opened_at.isoformat(timespec="microseconds"),
        header=request_header(job, model.identity),
        destination=destination,
        model=job.model.path,
        model_revision=model.revision,
        model_identity=model.identity,
        model_folder=model.folder,
        output_schema=target.schema.json(),
        num_ids=target.num_ids,
        num_rows=sum(facts.counts.values()),
        num_existing=facts.num(EXISTING),
        num_carried_over=facts.num(CARRIED_OVER),
        num_skipped=facts.num(SKIPPED),
        skipped={status: count for (state, status), count in facts.counts.items() if state == SKIPPED and status},
        waves=(),
        num_prompt_tokens=facts.num_prompt_tokens,
        estimated_s=work_s / slots,
        slots=slots,
        retries=bool(options.retry),
        task_settings=task_settings(job),
        input_settings=input_settings(job, options.limit),
        input_version=source.version,
        token_histogram=facts.histogram,
        num_shared=facts.num(TODO) - facts.num_questions,
        num_copied=facts.num(COPIED),
    )


def _plan_id(name: str, destination: str, facts: Facts) -> str:
    """A hash of the snapshot. It starts with a letter, so that no reader of folders takes it for a number."""
    text = json.dumps([name, destination, facts.digest])
    return "p" + hashlib.sha256(text.encode()).hexdigest()[:31]
