"""The steps of a start, in their order, and the marks between them by which the next start goes on.

Nothing here needs Spark: tests/store_model runs these very lines over a model of the store.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Protocol, TypeVar

from dolly_batch.spark.files import Files
from dolly_batch.spark.plan.draft import delete_drafts
from dolly_batch.spark.plan.manifest import (
    ABANDONED,
    PUBLISHED,
    Plan,
    PlanFolder,
    open_plan,
    plans_under,
    unreadable_plans,
)

Check = Callable[[], None]
"""Raises AlreadyRunning when another start has taken over."""


class Opened(Protocol):
    """A plan that is being worked on."""

    @property
    def folder(self) -> PlanFolder:
        """Its folder."""

    @property
    def plan(self) -> Plan:
        """What it decided."""


AnyOpened = TypeVar("AnyOpened", bound=Opened)


class Steps(Protocol[AnyOpened]):
    """What is done in each step. An exception ends the start; the next one goes on behind the last mark."""

    def resume(self) -> AnyOpened | None:
        """The open plan of the job, None without one."""

    def make_plan(self, check: Check) -> AnyOpened | None:
        """A new plan, None where nothing is left to do."""

    def generate(self, opened: AnyOpened, check: Check) -> None:
        """Have the waves that are left answered."""

    def publish(self, opened: AnyOpened) -> dict[str, object]:
        """Commit the rows, and return the facts to keep about them."""

    def audit(self, opened: AnyOpened) -> None:
        """Compare plan and output, and set the mark of a complete plan."""


def proceed(steps: Steps[AnyOpened], check: Check) -> None:
    """Take a job from where it stands to its end, under its lock."""
    opened = steps.resume() or steps.make_plan(check)
    if opened is None:
        return
    if not opened.folder.has(PUBLISHED):
        steps.generate(opened, check)
        check()
        facts = steps.publish(opened)
        check()
        opened.folder.mark(PUBLISHED, facts)
    steps.audit(opened)


def sweep(files: Files, work: str, name: str, keep_days: float) -> None:
    """Delete what killed starts of this job have left, and the prompts and answers of its finished plans, `keep_days`
    after they were planned. The caller holds the job's lock."""
    delete_drafts(files, work, name)
    for folder, plan in plans_under(files, work):
        if plan.name != name or folder.is_open:
            continue
        age = datetime.now(datetime.fromisoformat(plan.created_at).tzinfo) - datetime.fromisoformat(plan.created_at)
        if age >= timedelta(days=keep_days):
            folder.discard_rows()


def abandon(files: Files, work: str, name: str) -> tuple[Plan | None, int]:
    """Close the job's open plan. Returns it, and how many plans were closed that could not be read."""
    unreadable = unreadable_plans(files, work, name)
    for folder in unreadable:
        _close(folder)
    opened = open_plan(files, work, name)
    if opened is not None:
        _close(opened[0])
    return (None if opened is None else opened[1]), len(unreadable)


def _close(folder: PlanFolder) -> None:
    folder.mark(ABANDONED, {})
    folder.discard_rows()
