"""One start of a job: refuse, plan (or resume the open plan), generate, publish, audit.

A newcomer reads `run_job` here, `answer_shard` in generate/shard.py and the engine's `step`: the rest is between them.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pyspark.sql import SparkSession
from pyspark.sql import types as T

from dolly_batch.config.job import JobConfig
from dolly_batch.console import say
from dolly_batch.errors import BudgetSpent, InputError, Refused
from dolly_batch.report import Report
from dolly_batch.spark.audit import audit
from dolly_batch.spark.checks import check_predicates
from dolly_batch.spark.files import Files, files_for
from dolly_batch.spark.generate.early_host import start_early
from dolly_batch.spark.generate.jobs import described
from dolly_batch.spark.generate.waves import Generation, generate
from dolly_batch.spark.lock import JobLock
from dolly_batch.spark.model import planned_model, resolve_model
from dolly_batch.spark.options import NO_OPTIONS, Options, loaded
from dolly_batch.spark.outcome import Opened, answer_facts, complete, count_cost, staged_facts
from dolly_batch.spark.plan.column_order import find_column_order
from dolly_batch.spark.plan.cost import cost_note, estimated_cost
from dolly_batch.spark.plan.keys import input_settings, request_header, stored_input_settings, task_settings
from dolly_batch.spark.plan.manifest import PUBLISHED, Plan, open_plan
from dolly_batch.spark.plan.measured import START_S, remember
from dolly_batch.spark.plan.planner import make_plan
from dolly_batch.spark.plan.prepared_task import settled
from dolly_batch.spark.plan.summary import cascade_note, fill_plan, plan_line, planned_message
from dolly_batch.spark.preflight.executors import check_executors, check_shared
from dolly_batch.spark.publish import publish, put_tags
from dolly_batch.spark.rejected import open_rejected
from dolly_batch.spark.session.session import open_session
from dolly_batch.spark.signals import raising_by_name, stopping_on_signals
from dolly_batch.spark.small_tables import compiling_if_large
from dolly_batch.spark.steps import Check, abandon, proceed, sweep
from dolly_batch.spark.tables.columns import names_columns
from dolly_batch.spark.tables.input import InputTable, input_files, open_input, read_table
from dolly_batch.spark.tables.output import OutputTable, open_output, output_of
from dolly_batch.spark.tables.places import check_catalog_stays
from dolly_batch.spark.tables.trial import try_output
from dolly_batch.spark.tell.others import check_clients
from dolly_batch.spark.work_dir import prepare_work_dir
from dolly_batch.tasks.base import TaskModel


@raising_by_name()
def run_job(job: JobConfig | str | Path, options: Options = NO_OPTIONS, *, report: Report | None = None) -> Report:
    """Run a job, given as such or as the path of its file, to its end, and return its numbers.

    A `report` that is given is filled as the run proceeds, so that it holds what was reached when an exception leaves.
    Raises the exceptions of errors.py. Whatever is raised, finished waves are kept, and the same call resumes the run.
    """
    job = loaded(job)
    report = report or Report(job.name)
    options.check(job)
    check_clients(job)
    with report.timed("session"):
        spark = _opened_session(job)
    files, work = files_for(spark, job.work_dir)
    prepare_work_dir(spark, files, work)
    locked = JobLock(files, f"{work}/.{job.name}.lock")
    with stopping_on_signals(), locked as lock, compiling_if_large(spark, job):
        sweep(files, work, job.name, job.work.keep_days)
        if options.abandon:
            _abandon(files, work, job, report)
            return report
        proceed(_Start(spark, job, options, files, work, report), lock.check)
        sweep(files, work, job.name, job.work.keep_days)
    return report


@raising_by_name()
def plan_job(job: JobConfig | str | Path, options: Options = NO_OPTIONS, *, report: Report | None = None) -> Report:
    """Count what a run of the job would take: rows, tokens, time. Writes nothing except the staged model.

    Arguments, result and exceptions are those of `run_job`.
    """
    job = loaded(job)
    report = report or Report(job.name)
    options.check(job)
    spark = _opened_session(job)
    files, work = files_for(spark, job.work_dir)
    prepare_work_dir(spark, files, work)
    with compiling_if_large(spark, job):
        source, target = _opened_tables(spark, job)
        model = resolve_model(spark, job, work, say)
        check_executors(spark, target, model.folder)
        plan = make_plan(options, source, target, model, files, work, dry=True).plan
        better = find_column_order(source)
    fill_plan(report, plan, target)
    report.estimated_s = plan.estimated_s + START_S[model.device(job)]
    report.by_status = plan.skipped
    report.outcome, report.exit_code = "planned", 0
    report.message = planned_message(job, plan)
    report.tags, report.estimated_cost = job.tags, estimated_cost(spark, job, plan)
    if note := cost_note(spark, job, plan):
        report.message += f"\n{note}"
    if better is not None:
        report.message += f"\n{better}"
    return report


@dataclass(frozen=True)
class _Start:
    """The steps of one start; see steps.Steps."""

    spark: SparkSession
    job: JobConfig
    options: Options
    files: Files
    work: str
    report: Report

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """Count a step's time, and name its jobs in Spark's UI."""
        with self.report.timed(name), described(self.spark, f"{self.job.name}: {name}"):
            yield

    def resume(self) -> Opened | None:
        with self._step("plan"):
            opened = _resumed(self.spark, self.job, self.options, self.files, self.work)
        if opened is not None:
            _describe(opened, self.report)
        return opened

    def make_plan(self, check: Check) -> Opened | None:
        with self._step("plan"):
            opened = _planned(self.spark, self.job, self.options, self.files, self.work, self.report, check)
        if opened is not None:
            _describe(opened, self.report)
        return opened

    def generate(self, opened: Opened, check: Check) -> None:
        with self._step("generate"):
            try:
                generate(Generation(self.spark, self.job, opened.folder, opened.plan, opened.model, check))
            except BudgetSpent as spent:
                count_cost(self.job, spent.busy_s, self.report)
                raise

    def publish(self, opened: Opened) -> dict[str, object]:
        with self._step("publish"):
            publish(opened.target, opened.folder, opened.plan)
            put_tags(opened.target)
            facts = staged_facts(opened)
            return {**facts, **answer_facts(opened, facts["by_status"])}

    def audit(self, opened: Opened) -> None:
        with self._step("audit"):
            findings = audit(opened.target, opened.folder, opened.plan)
        complete(self.job, opened, findings, self.report)
        if "generate" in self.report.seconds and not self.report.num_resumed_waves:
            device = opened.model.device(self.job)
            remember(self.files, self.work, opened.plan, device, self.report.seconds["generate"])


def _opened_session(job: JobConfig) -> SparkSession:
    """The session. Raises OutputError for a catalog table that would be forgotten when this run ends."""
    is_ours = SparkSession.getActiveSession() is None and job.spark.remote is None
    spark = open_session(job)
    for table in (job.output, job.output.rejected):
        if is_ours and table is not None and table.table is not None:
            check_catalog_stays(spark, table.table)
    return spark


def _opened_tables(spark: SparkSession, job: JobConfig) -> tuple[InputTable, OutputTable]:
    source = open_input(spark, job)
    target = open_output(spark, job, source)
    check_predicates(target)
    return source, target


def _files_of_input(spark: SparkSession, job: JobConfig) -> Sequence[str]:
    """The input's files as it is now; none where it is gone, which a plan's resumption does not mind."""
    try:
        return input_files(read_table(spark, job.input, "input")[0], job.input)
    except InputError:
        return []


def _resumed(spark: SparkSession, job: JobConfig, options: Options, files: Files, work: str) -> Opened | None:
    """The job's open plan, if it has one. Its input is not read again."""
    opened = open_plan(files, work, job.name)
    if opened is None:
        return None
    folder, plan = opened
    target = output_of(spark, job, T.StructType.fromJson(json.loads(plan.output_schema)), plan.num_ids)
    asked = settled(job, TaskModel(plan.model_folder, 0))
    same = (
        plan.header == request_header(asked, plan.model_identity)
        and plan.task_settings in ("", task_settings(asked))
        and stored_input_settings(plan.input_settings) in ("", input_settings(job, options.limit))
        and plan.destination == target.destination()
        and names_columns(job, target.schema, plan.num_ids)
        and plan.model == job.model.path
        and _is_revision(plan, job.model.revision)
        and _retries_the_same(plan, options)
    )
    if not same:
        raise Refused(
            f"job {job.name} has an open plan ({plan.plan_id}) with other settings (model, task, generation, input, "
            "output, --limit or --retry): finish it with those, or close it with --abandon and start again"
        )
    check_predicates(target)
    if not folder.has(PUBLISHED):
        try_output(target, work, plan.retries)
        open_rejected(target, work, partial(_files_of_input, spark, job))
    model = planned_model(spark, plan, job)
    check_shared(spark, files, work, target, model.folder)
    num_finished = len(folder.staged_waves())
    say(f"resuming plan {plan.plan_id}: {num_finished} of {len(plan.waves)} waves are finished")
    if num_finished < len(plan.waves):
        start_early(spark, model.engine_spec(job))
    return Opened(folder, plan, target, model)


def _retries_the_same(plan: Plan, options: Options) -> bool:
    """Whether the statuses of `--retry` are the plan's, as far as an earlier version has kept them."""
    return plan.retries == bool(options.retry) and plan.retried in ((), tuple(sorted(options.retry)))


def _is_revision(plan: Plan, revision: str | None) -> bool:
    """Whether the job may mean the plan's revision: a branch or a tag is not asked for its commit again."""
    if plan.asked_revision is not None:
        return revision in (plan.asked_revision, plan.model_revision)
    commit = re.compile("[0-9a-f]{40}").fullmatch
    return revision is None or not commit(revision) or plan.model_revision in (None, revision)


def _planned(
    spark: SparkSession,
    job: JobConfig,
    options: Options,
    files: Files,
    work: str,
    report: Report,
    check: Callable[[], None],
) -> Opened | None:
    """A new plan, or None when nothing is left to do (the report then says so)."""
    source, target = _opened_tables(spark, job)
    try_output(target, work, bool(options.retry))
    open_rejected(target, work, partial(input_files, source.df, job.input))
    model = resolve_model(spark, job, work, say)
    check_shared(spark, files, work, target, model.folder)
    say(f"planning {job.name}: reading {job.input.name}")
    prepare = partial(start_early, spark, model.engine_spec(job))
    planned = make_plan(options, source, target, model, files, work, check=check, prepare=prepare)
    if planned.folder is None:
        fill_plan(report, planned.plan, target)
        report.outcome, report.exit_code = "nothing_to_do", 0
        report.message = f"{job.name}: all {planned.plan.num_rows:,} rows are already answered; nothing was written"
        return None
    if note := cascade_note(job, planned.plan.num_todo):
        say(note)
    return Opened(planned.folder, planned.plan, target, model)


def _describe(opened: Opened, report: Report) -> None:
    plan = opened.plan
    fill_plan(report, plan, opened.target)
    report.num_resumed_waves = len(opened.folder.staged_waves())
    say(plan_line(plan))


def _abandon(files: Files, work: str, job: JobConfig, report: Report) -> None:
    report.outcome, report.exit_code = "abandoned", 0
    plan, num_unreadable = abandon(files, work, job.name)
    if plan is None:
        closed = f"{num_unreadable} plans that could not be read are closed"
        report.message = f"{job.name}: {closed if num_unreadable else 'there is no open plan'}"
        return
    report.plan_id = plan.plan_id
    report.message = f"{job.name}: plan {plan.plan_id} is closed; the next run plans its {plan.num_todo:,} rows again"
