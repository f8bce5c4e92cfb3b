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
from collections.abc import Callable
from dataclasses import dataclass, replace

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from dolly_batch.config.job import JobConfig
from dolly_batch.errors import Refused
from dolly_batch.spark.decisions import ANSWERS, ASKING, CARRIED_OVER, COPIED, EXISTING, SKIPPED, TODO
from dolly_batch.spark.files import Files
from dolly_batch.spark.model import ModelFacts
from dolly_batch.spark.options import Options
from dolly_batch.spark.plan.beginnings import Sharing, find_sharing
from dolly_batch.spark.plan.cost import refuse_expensive
from dolly_batch.spark.plan.draft import Draft, Planned
from dolly_batch.spark.plan.estimate import slot_rate
from dolly_batch.spark.plan.existing import Retry, check_row_keys, find_retryable, is_up_to_date, with_existing
from dolly_batch.spark.plan.input_rows import check_ids, key_input, limit_rows
from dolly_batch.spark.plan.keys import input_settings, request_header, task_settings
from dolly_batch.spark.plan.known_answers import known_answers, known_questions, with_known
from dolly_batch.spark.plan.layout import count_shards, count_wave_shards, write_questions
from dolly_batch.spark.plan.lookup import FEW_ROWS, found_of_few, found_rows, meets_none
from dolly_batch.spark.plan.manifest import Plan
from dolly_batch.spark.plan.measured import measured_factor, rate_name
from dolly_batch.spark.plan.prepared_task import prepare_task, settled
from dolly_batch.spark.plan.questions import asking_rows, distinct_questions, shares_answers
from dolly_batch.spark.plan.row_status import Facts, read_facts
from dolly_batch.spark.plan.sample import draw_sample, sample_size
from dolly_batch.spark.plan.snapshot import write_part
from dolly_batch.spark.preflight.gpus import generation_slots
from dolly_batch.spark.tables.input import InputTable, unreadable_input_named
from dolly_batch.spark.tables.output import OutputTable
from dolly_batch.spark.tables.row_rules import check_rows
from dolly_batch.tasks.base import PreparedTask


def _nothing() -> None:
    """For who holds no lock, or has nothing to prepare."""


def make_plan(
    options: Options,
    source: InputTable,
    target: OutputTable,
    model: ModelFacts,
    files: Files,
    work: str,
    *,
    check: Callable[[], None] = _nothing,
    prepare: Callable[[], None] = _nothing,
    dry: bool = False,
) -> Planned:
    """Plan what is left to do, under `work/<plan_id>`; with `dry`, only count it.

    `check` raises when this start has lost the job's lock; it is called before the plan gets its name. `prepare` is
    called, unless `dry`, as soon as it is known that rows will be answered.
    Raises InputError for bad ids, OutputError for row keys that `merge` cannot tell apart, and Refused for more rows
    than `limits.max_rows` or more money than `limits.max_cost`; nothing is left on disk then.
    """
    job = settled(target.job, model.task_model)
    draft = Draft.of(target.spark, files, work, job.name, dry=dry)
    try:
        prepared = prepare_task(job, model.task_model)
        target = replace(target, job=job)
        retry = find_retryable(job, options.retry, model.identity, target, files, work)
        planning = _Planning(options, source.read_from_now(), target, model, draft, prepared, retry)
        rows = planning.matched(planning.keyed(), dry=dry)
        effort = planning.effort(rows.facts, work)
        plan = planning.counted(rows.facts, effort)
        if plan.num_rows == plan.num_answered_before and (dry or is_up_to_date(rows.all, target)):
            return Planned(plan, None)
        if not dry:
            _refuse_too_much(target.spark, job, plan, rows.facts)
            if rows.facts.num_questions:
                prepare()
        questions = planning.questions(rows, plan)
        num_shards = count_shards(rows.facts.num_questions, effort.seconds, plan.slots, job.plan)
        sharing = find_sharing(questions, rows.facts.num_questions, num_shards)
        plan = replace(plan, prefix_share=round(sharing.share, 4))
        if dry:
            return Planned(plan, None)
        return draft.opened(planning.laid_out(rows, questions, plan, effort, num_shards, sharing), work, check)
    finally:
        files.delete(draft.path)


@dataclass(frozen=True)
class _Rows:
    """The rows of the input and of an output that is replaced, each with its state; what they count to; and the answers
    that the output has to what others ask, None where it has none."""

    all: DataFrame
    facts: Facts
    known: DataFrame | None = None


@dataclass(frozen=True)
class _Effort:
    """Seconds that one slot would take for all rows to answer, and the factor in them that earlier runs have shown."""

    seconds: float
    factor: float


@dataclass(frozen=True)
class _Planning:
    """The stages of one planning; `target` has the settled job."""

    options: Options
    source: InputTable
    target: OutputTable
    model: ModelFacts
    draft: Draft
    prepared: PreparedTask
    retry: Retry

    @property
    def job(self) -> JobConfig:
        """With the settings that the model decides."""
        return self.target.job

    @property
    def shares(self) -> bool:
        """Whether rows of one request key get one answer."""
        return shares_answers(self.job, self.prepared, self.retry)

    @property
    def reuses(self) -> bool:
        """Whether an answer that the output holds for another row is copied."""
        return self.shares and self.job.output.reuse_answers

    def keyed(self) -> DataFrame:
        """The input's rows with their keys and token counts, read once. Raises InputError."""
        with unreadable_input_named(self.job.input):
            rows = key_input(self.source, self.job, self.model, self.prepared, self.retry)
            keyed = self.draft.saved(rows, "keyed")
        if self.source.ids:
            check_ids(keyed, self.source, self.job)
        return keyed

    def matched(self, keyed: DataFrame, *, dry: bool) -> _Rows:
        """The rows with their states, by what the output holds. Raises OutputError."""
        seen = None if dry else self.target.format.seen(self.target)  # before the output is read
        is_few = self.target.exists() and keyed.count() <= FEW_ROWS
        found = self._found(keyed, is_few=is_few)
        check_row_keys(self.target, found)
        limited = limit_rows(keyed, self.source, self.job, self.options.limit)
        rows = with_existing(limited, found, self.target, self.retry, self.model.max_positions)
        if limited is not keyed or found is not None:  # else nothing was joined or sorted that were to be kept
            rows = self.draft.saved(rows, "rows")
        self.draft.keep(seen, only_adds=self._only_adds(rows, found, is_few=is_few))
        check_rows(self.target, rows)
        facts = read_facts(rows, self.shares)
        known = self._known(rows, found, facts) if self.reuses and found is not None else None
        if known is None:
            return _Rows(rows, facts)
        rows = self.draft.saved(with_known(rows, known), "known_rows")
        return _Rows(rows, read_facts(rows, self.shares), known)

    def _found(self, keyed: DataFrame, *, is_few: bool) -> DataFrame | None:
        """What the rows may meet in the output; what few rows find is kept, for it is looked at more than once."""
        if not is_few:
            return found_rows(self.target, self.retry)
        found = found_of_few(self.target, keyed, self.retry, self.reuses)
        return found if found is None else self.draft.saved(found, "found")

    def _only_adds(self, rows: DataFrame, found: DataFrame | None, *, is_few: bool) -> bool:
        """Whether no row that is planned replaces one of the output, as far as that is known at no cost."""
        if self.options.retry or self.job.output.mode == "overwrite":
            return False
        return self.job.output.mode == "append" or found is None or (is_few and meets_none(rows, found))

    def _known(self, rows: DataFrame, found: DataFrame, facts: Facts) -> DataFrame | None:
        """The answers that the output has to what rows are to ask, None where it has none."""
        table = self.target.read() if facts.num_questions else None
        if table is None:
            return None
        known = self.draft.saved(known_questions(rows, found, self.retry, facts.num_questions), "known")
        num_known = known.count()
        if not num_known:
            return None
        return self.draft.saved(known_answers(known, self.target, table, self.retry, num_known), "known_answers")

    def effort(self, facts: Facts, work: str) -> _Effort:
        """What answering takes, by the kind of model and device, and by earlier runs under `work`."""
        job, model, factor = self.job, self.model, 1.0
        if job.plan.tokens_per_s is None:
            name = rate_name(request_header(job, model.identity), model.device(job))
            factor = measured_factor(self.draft.files, work, name)
        given, is_echo = job.plan.tokens_per_s, job.engine.kind == "echo"
        num_new = self.prepared.num_new_tokens
        rate = slot_rate(model.num_parameters, model.on_gpu, is_echo, num_new, given, model.gpu_names)
        return _Effort(factor * rate.seconds(facts.num_questions, facts.num_prompt_tokens), factor)

    def questions(self, rows: _Rows, plan: Plan) -> DataFrame:
        """The rows to ask, one for each question."""
        questions = _asked(rows.all)
        return self.draft.saved(distinct_questions(questions), "questions") if plan.num_shared else questions

    def laid_out(
        self, rows: _Rows, questions: DataFrame, plan: Plan, effort: _Effort, num_shards: int, sharing: Sharing
    ) -> Plan:
        """Write the snapshot. Returns the plan with its waves."""
        files, snapshot, num_questions = self.draft.files, f"{self.draft.path}/snapshot", rows.facts.num_questions
        per_wave, sample = count_wave_shards(num_shards, self.job.plan), None
        if size := sample_size(self.job, num_questions):
            num_of_sample = count_shards(size, effort.seconds * size / num_questions, plan.slots, self.job.plan)
            sample = draw_sample(self.job, questions, num_of_sample, per_wave)
        _write_rows(rows.all, plan, files, snapshot)
        if rows.known is not None:
            write_part(files, rows.known, f"{snapshot}/{ANSWERS}")
        waves = write_questions(
            questions, num_questions, num_shards, per_wave, sharing.beginning, files, snapshot, sample
        )
        return replace(plan, waves=tuple(waves), num_sample_waves=0 if sample is None else sample.num_waves)

    def counted(self, facts: Facts, effort: _Effort) -> Plan:
        """The plan without its waves."""
        job, model, destination = self.job, self.model, self.target.destination()
        slots = job.plan.slots or generation_slots(self.target.spark, job.model.gpus)
        skipped = {status: count for (state, status), count in facts.counts.items() if state == SKIPPED and status}
        return Plan(
            plan_id=plan_id(job.name, destination, facts),
            name=job.name,
            # As old as what was read: an answer to what was asked before takes no newer one's place, however late.
            created_at=self.source.opened_at.isoformat(timespec="microseconds"),
            header=request_header(job, model.identity),
            destination=destination,
            model=job.model.path,
            model_revision=model.revision,
            model_identity=model.identity,
            model_folder=model.folder,
            output_schema=self.target.schema.json(),
            num_ids=self.target.num_ids,
            num_rows=sum(facts.counts.values()),
            num_existing=facts.num(EXISTING),
            num_carried_over=facts.num(CARRIED_OVER),
            num_skipped=facts.num(SKIPPED),
            skipped=skipped,
            waves=(),
            num_prompt_tokens=facts.num_prompt_tokens,
            estimated_s=effort.seconds / slots,
            rate_factor=0.0 if effort.factor == 1.0 else effort.factor,
            slots=slots,
            retries=bool(self.options.retry),
            task_settings=task_settings(job),
            input_settings=input_settings(job, self.options.limit),
            input_version=self.source.version,
            token_histogram=facts.histogram,
            num_shared=facts.num(TODO) - facts.num_questions,
            num_copied=facts.num(COPIED),
            retried=tuple(sorted(self.options.retry)),
            asked_revision=job.model.revision,
        )


def _refuse_too_much(spark: SparkSession, job: JobConfig, plan: Plan, facts: Facts) -> None:
    """Raises Refused for more rows, or more money, than the job allows."""
    max_rows = job.limits.max_rows
    if max_rows is not None and facts.num(TODO) > max_rows:
        raise Refused(f"{facts.num(TODO)} rows are left to answer, more than limits.max_rows = {max_rows}")
    refuse_expensive(spark, job, plan)


def _asked(rows: DataFrame) -> DataFrame:
    """The rows to ask, in the columns of a snapshot."""
    return rows.filter(F.col("state") == TODO).drop("state", "status", "error")


def _write_rows(rows: DataFrame, plan: Plan, files: Files, path: str) -> None:
    """Write the rows that are no questions as parts of the snapshot. A part that has no row is not there."""
    counts = {SKIPPED: plan.num_skipped, CARRIED_OVER: plan.num_carried_over, COPIED: plan.num_copied}
    for name, count in counts.items():
        if count:
            part = rows.filter(F.col("state") == name).drop("state", "instruction", "context")
            write_part(files, part, f"{path}/{name}")
    if plan.num_shared:
        write_part(files, asking_rows(_asked(rows)), f"{path}/{ASKING}")


def plan_id(name: str, destination: str, facts: Facts) -> str:
    """A hash of the snapshot. It starts with a letter, so that no reader of folders takes it for a number."""
    text = json.dumps([name, destination, facts.digest])
    return "p" + hashlib.sha256(text.encode()).hexdigest()[:31]
