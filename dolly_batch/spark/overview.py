"""What `dolly-batch report WORK_DIR` shows: every plan under a work folder, how it stands and what it came to."""

import json
from pathlib import Path

from dolly_batch.errors import Refused
from dolly_batch.report_page import PlanFacts
from dolly_batch.spark.files import LocalFiles
from dolly_batch.spark.plan.manifest import ABANDONED, COMPLETE, PUBLISHED, PlanFolder, plan_folders


def read_plans(work_dir: str) -> list[PlanFacts]:
    """The plans of all jobs under a plain folder, newest first; needs no Spark session.

    Raises Refused where there is no such folder, or no plan in it.
    """
    if not Path(work_dir).is_dir():
        raise Refused(f"WORK_DIR {work_dir}: no such folder here; `report` reads plain folders and mounts")
    files = LocalFiles()
    found = [facts for folder in plan_folders(files, work_dir) if (facts := _facts(folder)) is not None]
    if not found:
        raise Refused(f"WORK_DIR {work_dir}: holds no plans; give the work_dir of a job that has run")
    return sorted(found, key=lambda facts: facts.created_at, reverse=True)


def _facts(folder: PlanFolder) -> PlanFacts | None:
    plan = folder.plan()
    if plan is None:
        return None
    staged = {wave.number for wave in plan.waves} if folder.has(PUBLISHED) else folder.staged_waves()
    return PlanFacts(
        plan_id=plan.plan_id,
        name=plan.name,
        created_at=plan.created_at,
        state=_state(folder, len(staged), len(plan.waves)),
        model=plan.model,
        num_input_rows=plan.num_rows,
        num_answered=sum(wave.num_rows for wave in plan.waves if wave.number in staged),
        num_todo=plan.num_todo,
        token_histogram=plan.token_histogram,
        report=json.loads(folder.files.read(folder.of("report.json")) or "{}"),
    )


def _state(folder: PlanFolder, num_staged: int, num_waves: int) -> str:
    if folder.has(COMPLETE):
        return "complete"
    if folder.has(ABANDONED):
        return "abandoned"
    if folder.has(PUBLISHED):
        return "published, not audited"
    return f"open, {num_staged} of {num_waves} waves"
