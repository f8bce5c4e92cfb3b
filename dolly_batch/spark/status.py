"""How a job stands, by its open or its last finished plan."""

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from pyspark.sql import SparkSession
from pyspark.sql import types as T

from dolly_batch.config.job import JobConfig
from dolly_batch.errors import AuditError
from dolly_batch.report import Progress, Report, duration
from dolly_batch.spark.audit import audit_table
from dolly_batch.spark.files import Files, files_for
from dolly_batch.spark.generate.tracker import read_kept
from dolly_batch.spark.lock import is_held
from dolly_batch.spark.options import loaded
from dolly_batch.spark.plan.manifest import COMPLETE, PUBLISHED, Plan, PlanFolder, open_plan, plans_under
from dolly_batch.spark.plans import num_staged_rows, stored_report
from dolly_batch.spark.session.session import open_session
from dolly_batch.spark.tables.input import open_input
from dolly_batch.spark.tables.output import OutputTable, open_output, output_of

SILENT_S = 120.0
"""A run that answers writes how far it is every 10 seconds."""
_SHOWN_OF_LAST = (
    *("by_status", "error_share", "num_completion_tokens", "num_published_rows", "model_loads", "seconds"),
    *("answered_by", "num_answered_by_model", "num_answered_by_proxy"),
    *("num_read_tokens", "num_generated_tokens", "num_begun_tokens", "num_waves", "num_resumed_waves"),
)


def read_status(job: JobConfig | str | Path, full: bool = False, *, report: Report | None = None) -> Report:
    """Report how a job stands, and with `full` count the rows of its whole output.

    A `report` that is given is filled. Raises AuditError when `full` finds a row that is repeated in the output.
    """
    job = loaded(job)
    report = report or Report(job.name)
    spark = open_session(job)
    files, work = files_for(spark, job.work_dir)
    report.outcome, report.exit_code = "status", 0
    opened = open_plan(files, work, job.name)
    if opened is not None:
        _describe_open(*opened, report, partial(is_held, files, f"{work}/.{job.name}.lock"))
    else:
        _describe_last(files, work, job, report)
    if full:
        _audit_output(spark, job, opened[1] if opened is not None else None, report)
    return report


def _describe_open(folder: PlanFolder, plan: Plan, report: Report, is_active: Callable[[], bool]) -> None:
    num_answered = num_staged_rows(folder, plan)
    waves = f"{len(folder.staged_waves())} of {len(plan.waves)} waves finished"
    report.plan_id, report.model, report.model_revision = plan.plan_id, plan.model, plan.model_revision
    report.num_input_rows, report.num_held_rows = plan.num_rows, plan.num_answered_before
    report.num_waves, report.num_answered_by_model = len(plan.waves), num_answered
    report.outcome = "open"
    report.message = (
        f"{plan.name}: plan {plan.plan_id} of {plan.created_at[:19]} UTC is open: "
        f"{'published, not yet audited' if folder.has(PUBLISHED) else waves}, "
        f"{num_answered:,} of {plan.num_todo:,} rows answered; `run` resumes it, `run --abandon` closes it"
    )
    report.progress = read_kept(folder).get("progress", {})
    if report.progress and not folder.has(PUBLISHED):
        with suppress(TypeError, KeyError, ValueError, AttributeError, ArithmeticError):  # another version's
            report.message += f"\n{_as_of(Progress(**report.progress), is_active)}"


def _as_of(progress: Progress, is_active: Callable[[], bool]) -> str:
    """What the run that answers, or the last one that did, said of itself; `is_active` may look for some seconds."""
    age_s = (datetime.now(UTC) - datetime.fromisoformat(progress.at)).total_seconds()
    line = f"{progress.at} ({duration(max(0.0, age_s))} ago): {progress}"
    if age_s < SILENT_S:
        return line
    if not is_active():
        return f"{line}\nno run is active"
    if progress.num_finished_waves == progress.num_waves:
        return f"{line}\na run is active: all waves are finished, and it publishes"
    return f"{line}\na run is active that has not answered since: it starts, trains a proxy, or waits for its tasks"


def _describe_last(files: Files, work: str, job: JobConfig, report: Report) -> None:
    plans = [(plan, folder) for folder, plan in plans_under(files, work) if folder.has(COMPLETE)]
    finished = [pair for pair in plans if pair[0].name == job.name]
    if not finished:
        report.message = f"{job.name}: there is no open and no finished plan under {job.work_dir}"
        return
    plan, folder = max(finished, key=lambda pair: pair[0].created_at)
    last = stored_report(folder)
    for key in _SHOWN_OF_LAST:
        if key in last:
            setattr(report, key, last[key])
    report.plan_id, report.output = plan.plan_id, last.get("output")
    report.model, report.model_revision, report.num_input_rows = plan.model, plan.model_revision, plan.num_rows
    report.message = (
        f"{job.name}: no plan is open; the last one, {plan.plan_id} of {plan.created_at[:19]} UTC, is complete"
    )


def _audit_output(spark: SparkSession, job: JobConfig, plan: Plan | None, report: Report) -> None:
    target = _target(spark, job, plan)
    table = target.read()
    if table is None:
        report.message += f"\nthe output {job.output.name} does not exist yet"
        return
    findings = audit_table(target, table)
    report.by_status, report.num_completion_tokens = findings.by_status, findings.num_completion_tokens
    report.output = target.path or job.output.table
    report.message += f"\nthe output has {findings.num_rows:,} rows, {findings.num_repeated:,} of them repeated"
    if findings.num_repeated:
        raise AuditError(report.message)


def _target(spark: SparkSession, job: JobConfig, plan: Plan | None) -> OutputTable:
    if plan is None:
        return open_output(spark, job, open_input(spark, job))
    return output_of(spark, job, T.StructType.fromJson(json.loads(plan.output_schema)), plan.num_ids)
