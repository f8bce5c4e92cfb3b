"""How a job stands: its open plan, or its last finished one; and with `--full`, the whole output looked over."""

import json
from collections.abc import Iterator
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql import types as T

from dolly_batch.config.job import JobConfig
from dolly_batch.errors import AuditError
from dolly_batch.report import Report
from dolly_batch.spark.audit import audit_table
from dolly_batch.spark.files import files_for
from dolly_batch.spark.plan.manifest import COMPLETE, PUBLISHED, Plan, PlanFolder, open_plan, plan_folders
from dolly_batch.spark.session.session import open_session
from dolly_batch.spark.tables.input import open_input
from dolly_batch.spark.tables.output import OutputTable, open_output, output_of


def read_status(job: JobConfig, full: bool, report: Report) -> SparkSession:
    """Fill the report with where the job stands. With `full`, raises AuditError when the output holds a row twice."""
    spark = open_session(job)
    files, work = files_for(spark, job.work_dir)
    report.outcome, report.exit_code = "status", 0
    found = open_plan(files, work, job.name)
    if found is not None:
        _describe_open(*found, report)
    else:
        _describe_last(_finished(plan_folders(files, work), job.name), job, report)
    if full:
        _look_over(spark, job, found[1] if found is not None else None, report)
    return spark


def _describe_open(folder: PlanFolder, plan: Plan, report: Report) -> None:
    staged = folder.staged_waves()
    done = sum(wave.num_rows for wave in plan.waves if wave.number in staged)
    step = (
        "published, not yet audited" if folder.has(PUBLISHED) else f"{len(staged)} of {len(plan.waves)} waves finished"
    )
    report.plan_id, report.model, report.model_revision = plan.plan_id, plan.model, plan.model_revision
    report.num_input_rows, report.num_held_rows = plan.num_rows, plan.num_held + plan.num_reused
    report.num_waves, report.num_answered_by_model = len(plan.waves), done
    report.outcome = "open"
    report.message = (
        f"{plan.name}: plan {plan.plan_id} of {plan.created_at[:19]} UTC is open: {step}, "
        f"{done:,} of {plan.num_todo:,} rows answered; `run` goes on with it, `run --abandon` closes it"
    )


def _finished(folders: Iterator[PlanFolder], name: str) -> list[tuple[Plan, dict[str, Any]]]:
    finished = []
    for folder in folders:
        plan = folder.plan()
        if plan is not None and plan.name == name and folder.has(COMPLETE):
            finished.append((plan, json.loads(folder.files.read(folder.of("report.json")) or "{}")))
    return sorted(finished, key=lambda pair: pair[0].created_at)


def _describe_last(finished: list[tuple[Plan, dict[str, Any]]], job: JobConfig, report: Report) -> None:
    if not finished:
        report.message = f"{job.name}: no plan is open and none has been finished under {job.work_dir}"
        return
    plan, last = finished[-1]
    for key in ("by_status", "error_share", "num_completion_tokens", "num_published_rows", "model_loads", "seconds"):
        if key in last:
            setattr(report, key, last[key])
    report.plan_id, report.output = plan.plan_id, last.get("output")
    report.model, report.model_revision, report.num_input_rows = plan.model, plan.model_revision, plan.num_rows
    report.message = (
        f"{job.name}: no plan is open; the last one, {plan.plan_id} of {plan.created_at[:19]} UTC, is complete"
    )


def _look_over(spark: SparkSession, job: JobConfig, plan: Plan | None, report: Report) -> None:
    target = _target(spark, job, plan)
    table = target.read()
    if table is None:
        report.message += f"\nthe output {job.output.name} does not exist yet"
        return
    findings = audit_table(target, table)
    report.by_status, report.num_completion_tokens = findings.by_status, findings.num_completion_tokens
    report.output = target.path or job.output.table
    report.message += f"\nthe output holds {findings.num_rows:,} rows, {findings.num_repeated:,} of them more than once"
    if findings.num_repeated:
        raise AuditError(report.message)


def _target(spark: SparkSession, job: JobConfig, plan: Plan | None) -> OutputTable:
    if plan is None:
        return open_output(spark, job, open_input(spark, job))
    return output_of(spark, job, T.StructType.fromJson(json.loads(plan.output_schema)), plan.num_ids)
