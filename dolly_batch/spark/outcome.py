"""The end of a run: what the staged answers and the audit have counted goes into its report, and stays in the plan."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import Column
from pyspark.sql import functions as F

from dolly_batch.config.job import JobConfig
from dolly_batch.console import say
from dolly_batch.page.pages import plan_page
from dolly_batch.records import count_errors
from dolly_batch.report import Report
from dolly_batch.spark.audit import Findings
from dolly_batch.spark.causes import reason
from dolly_batch.spark.checks import count_failures
from dolly_batch.spark.details import keep_details
from dolly_batch.spark.generate.cascade import cascade_facts
from dolly_batch.spark.generate.limits import busy_s
from dolly_batch.spark.model import ModelFacts
from dolly_batch.spark.plan.manifest import COMPLETE, PUBLISHED, Plan, PlanFolder
from dolly_batch.spark.plans import keep_page, plan_report
from dolly_batch.spark.publish import count_statuses, new_rows, staged_answers
from dolly_batch.spark.rejected import add_rejected
from dolly_batch.spark.tables.output import OutputTable
from dolly_batch.spark.tell.others import tell_others

RESUMED_COUNTS = ("num_continued_rows", "num_restarted_rows", "num_begun_tokens")
_OF_ANSWERS = ("num_rejected_rows", "num_checked_rows", "checks", "check_faults")
_TOKENS = {"num_generated_tokens": "num_completion_tokens", "num_read_tokens": "num_prompt_tokens"}


@dataclass(frozen=True)
class Opened:
    """A plan that is being worked on, and what the steps after planning need."""

    folder: PlanFolder
    plan: Plan
    target: OutputTable
    model: ModelFacts


def staged_facts(opened: Opened) -> dict[str, Any]:
    """Counts of the staged answers: rows by status, tokens, resumed answers, model loads, seconds of busy engines."""
    answers = staged_answers(opened.target, opened.folder, opened.plan)
    counts = {"num_rows": F.count("*"), "load": F.max("engine_load"), **_sums()}
    if opened.plan.num_sample_waves:
        counts["num_by_proxy"] = F.count(F.when(F.col("answered_by") == "proxy", True))
    counts["spans"] = F.collect_list(F.when(F.col("ended_s").isNotNull(), F.struct("began_s", "ended_s")))
    groups = answers.groupBy("status", "engine_id").agg(*(column.alias(name) for name, column in counts.items()))
    found = groups.collect()
    by_proxy = {"num_answered_by_proxy": sum(row.num_by_proxy for row in found)} if "num_by_proxy" in counts else {}
    return {
        "by_status": _by_status(opened, found),
        **by_proxy,
        **{name: sum(row[name] or 0 for row in found) for name in _sums()},
        "model_loads": sum({row.engine_id: row.load or 0 for row in sorted(found, key=_load)}.values()),
        "busy_s": busy_s(_spans(found)),
        "num_published": opened.plan.num_planned,
    }


def answer_facts(opened: Opened, by_status: Mapping[str, int]) -> dict[str, object]:
    """Check the answers and add the rejected rows to their table, where the job asks for it.

    `by_status` are the plan's new rows, as `staged_facts` counts them.
    """
    target, facts = opened.target, dict[str, object]()
    if target.job.output.rejected is None and not target.job.checks:
        return facts
    rows = new_rows(target, opened.folder, opened.plan)
    if target.job.output.rejected is not None:
        facts["num_rejected_rows"] = num_rejected = count_errors(by_status)
        if num_rejected:
            add_rejected(target, opened.plan, rows)
    if target.job.checks:
        facts |= count_failures(target, rows)
    return facts


def _load(row: Any) -> int:
    return row.load or 0


def _sums() -> dict[str, Column]:
    begun = F.col("num_begun_tokens")
    resumed = (F.count(F.when(begun > 0, True)), F.count(F.when(begun == 0, True)), F.sum(begun))
    return {
        **{name: F.sum(column) for name, column in _TOKENS.items()},
        **dict(zip(RESUMED_COUNTS, resumed, strict=True)),
    }


def _spans(found: Sequence[Any]) -> dict[str, list[tuple[float, float]]]:
    """When each engine had tasks, in seconds of its machine's clock."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for row in found:
        spans.setdefault(row.engine_id, []).extend((began_s, ended_s) for began_s, ended_s in row.spans)
    return spans


def _by_status(opened: Opened, found: Sequence[Any]) -> dict[str, int]:
    if opened.plan.num_shared or opened.plan.num_copied:  # fewer answers than rows
        return count_statuses(opened.target, opened.folder, opened.plan)
    by_status = dict(opened.plan.skipped)
    for row in found:
        by_status[row.status] = by_status.get(row.status, 0) + row.num_rows
    return by_status


def count_cost(job: JobConfig, engines_s: float | None, report: Report) -> None:
    """Put GPU time and cost into a report; `engines_s` is None where an earlier version has published, uncounted."""
    report.tags, price = job.tags, job.limits.price_per_gpu_hour
    report.gpu_hours = round((engines_s or 0.0) * job.model.gpus / 3600, 6)
    report.cost = None if price is None or engines_s is None else round(report.gpu_hours * price, 4)


def _too_many(report: Report, limit: float) -> list[str]:
    """Why a complete run ends with exit code 3."""
    more = f"more than limits.max_error_share = {limit:.1%} (exit 3)"
    reasons = [f"{report.error_share:.1%} of them are errors, {more}"] if report.error_share > limit else []
    for name in report.failing_checks(limit):
        share = report.checks[name] / report.num_checked_rows
        reasons.append(f"{share:.1%} of the answers fail the check {name}, {more}")
    faults = report.check_faults.items()
    return reasons + [f"the check {name} could not be counted (exit 3): {fault}" for name, fault in faults]


def complete(job: JobConfig, opened: Opened, findings: Findings, report: Report) -> None:
    """Fill the report of a run whose audit has passed, and set the plan's last mark."""
    facts = opened.folder.facts(PUBLISHED)
    report.by_status = findings.by_status
    report.num_completion_tokens = findings.num_completion_tokens
    report.model_loads = facts.get("model_loads", 0)
    report.num_generated_tokens = facts.get("num_generated_tokens", findings.num_completion_tokens)
    report.num_read_tokens = facts.get("num_read_tokens", opened.plan.num_prompt_tokens)
    count_cost(job, facts.get("busy_s"), report)
    report.num_published_rows = opened.plan.num_planned
    report.num_answered_by_proxy = facts.get("num_answered_by_proxy", 0)
    report.num_answered_by_model = opened.plan.num_todo - report.num_answered_by_proxy
    report.answered_by, report.cascade = findings.answered_by, cascade_facts(opened.folder)
    for name in (*RESUMED_COUNTS, *_OF_ANSWERS):
        setattr(report, name, facts.get(name, getattr(report, name)))
    report.outcome = "complete"
    report.check_errors(job.limits.max_error_share)
    reasons = "".join(f"; {text}" for text in _too_many(report, job.limits.max_error_share))
    report.message = f"{job.name}: complete, {findings.num_rows:,} rows, none missing, none repeated{reasons}"
    opened.folder.files.write(opened.folder.of("report.json"), report.to_json())
    if job.report.html or job.report.mlflow:
        _kept("details", lambda: keep_details(opened.target, opened.folder, opened.plan, opened.model))
    who = {"answered_by": findings.answered_by} if job.task.cascade is not None else {}
    opened.folder.mark(COMPLETE, {"by_status": findings.by_status, "num_rows": findings.num_rows, **who})
    if job.report.html:
        _kept("page", lambda: _write_page(opened))
    tell_others(opened.target.spark, job, opened.plan, lambda: plan_report(opened.folder, opened.plan))


def _write_page(opened: Opened) -> None:
    folder = opened.folder
    keep_page(folder.files, folder.path, plan_page(plan_report(folder, opened.plan)))


def _kept(name: str, keep: Callable[[], None]) -> None:
    """Keep a part of the report. Whatever keeps it from being kept: the run is complete, and one line says so."""
    try:
        keep()
    except Exception as error:  # a fault of a page must not be one of the run
        say(f"{name} of the report could not be kept: {type(error).__name__}: {reason(error)}")
