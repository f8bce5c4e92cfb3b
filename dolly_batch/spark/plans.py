"""The plans of a work folder, as reports show them. Without a Spark session, where the folder is a plain one."""

import json
from pathlib import Path
from typing import Any

from dolly_batch.config.job import JobConfig
from dolly_batch.console import say
from dolly_batch.errors import Refused, Stopped
from dolly_batch.report import PlanReport
from dolly_batch.spark.details import read_details
from dolly_batch.spark.files import Files, files_for
from dolly_batch.spark.generate.tracker import read_kept
from dolly_batch.spark.local_files import LocalFiles
from dolly_batch.spark.plan.manifest import ABANDONED, COMPLETE, PAGE, PUBLISHED, Plan, PlanFolder, plans_under
from dolly_batch.spark.session.session import open_session


def read_plans(work_dir: str) -> list[PlanReport]:
    """The plans of all jobs under a plain folder, newest first; needs no Spark session.

    Raises Refused where there is no such folder, or no plan in it.
    """
    if not Path(work_dir).is_dir():
        raise Refused(f"WORK_DIR {work_dir}: no such folder here; `report` reads plain folders, mounts, and job files")
    plans = _newest_first(LocalFiles(), work_dir)
    if not plans:
        raise Refused(f"WORK_DIR {work_dir}: holds no plans; give the work_dir of a job that has run")
    return [plan_report(*pair) for pair in plans]


def read_last_plan(job: JobConfig) -> tuple[PlanFolder, PlanReport]:
    """The newest plan of a job that is not abandoned; a session is opened where the work folder is not a plain one.

    Raises Refused where there is none.
    """
    plain = job.work_dir.removeprefix("file:")
    found: tuple[Files, str] = (LocalFiles(), plain)
    if not Path(plain).is_dir():
        found = files_for(open_session(job), job.work_dir)
    for folder, plan in _newest_first(*found):
        if plan.name == job.name and not folder.has(ABANDONED):
            return folder, plan_report(folder, plan)
    raise Refused(f"{job.name}: there is no plan under {job.work_dir}; run the job first")


def keep_page(files: Files, folder: str, text: str) -> str:
    """Write a page to a folder, and return its path."""
    path = f"{folder}/{PAGE}"
    files.write(path, text)
    return path


def plan_report(folder: PlanFolder, plan: Plan) -> PlanReport:
    """What is known of a plan."""
    return PlanReport(
        plan_id=plan.plan_id,
        name=plan.name,
        created_at=plan.created_at,
        state=_state(folder, plan),
        model=plan.model,
        num_input_rows=plan.num_rows,
        num_answered=plan.num_todo if folder.has(PUBLISHED) else num_staged_rows(folder, plan),
        num_todo=plan.num_todo,
        token_histogram=plan.token_histogram,
        report=stored_report(folder),
        model_revision=plan.model_revision,
        progress=read_kept(folder),
        details=read_details(folder),
    )


def num_staged_rows(folder: PlanFolder, plan: Plan) -> int:
    """Rows of finished waves."""
    staged = folder.staged_waves()
    return sum(wave.num_rows for wave in plan.waves if wave.number in staged)


def stored_report(folder: PlanFolder) -> dict[str, Any]:
    """The content of report.json, empty before the plan is complete."""
    stored: dict[str, Any] = json.loads(folder.files.read(folder.of("report.json")) or "{}")
    return stored


def _newest_first(files: Files, work_dir: str) -> list[tuple[PlanFolder, Plan]]:
    return sorted(plans_under(files, work_dir, _name), key=lambda pair: pair[1].created_at, reverse=True)


def _name(folder: PlanFolder, fault: Stopped) -> None:
    say(f"{folder.path}: its manifest cannot be read: {fault}")


def _state(folder: PlanFolder, plan: Plan) -> str:
    if folder.has(COMPLETE):
        return "complete"
    if folder.has(ABANDONED):
        return "abandoned"
    if folder.has(PUBLISHED):
        return "published, not audited"
    return f"open, {len(folder.staged_waves())} of {len(plan.waves)} waves"
