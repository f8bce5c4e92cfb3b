"""The folder in which a plan is made, and its renaming to the plan's name."""

import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame, SparkSession

from dolly_batch.spark.files import Files
from dolly_batch.spark.plan.manifest import BESIDE, MANIFEST, Plan, PlanFolder
from dolly_batch.spark.plan.snapshot import read_part, write_part


@dataclass(frozen=True)
class Planned:
    """A plan; and its folder, None where it was only counted or nothing is left to do."""

    plan: Plan
    folder: PlanFolder | None


@dataclass(frozen=True)
class Draft:
    """The folder in which a plan is made, until the plan exists and it gets the plan's name."""

    spark: SparkSession
    files: Files
    path: str

    @classmethod
    def of(cls, spark: SparkSession, files: Files, work: str, name: str, *, dry: bool) -> "Draft":
        """A new one of a job, for a plan or, with `dry`, for counting alone."""
        kind = "counting" if dry else "planning"
        return cls(spark, files, f"{work}/.{kind}-{name}-{uuid.uuid4().hex[:12]}")

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


def delete_drafts(files: Files, work: str, name: str) -> None:
    """Delete the drafts that killed starts of this job have left. The caller holds the job's lock."""
    for draft in files.list_names(work):
        if re.fullmatch(rf"\.planning-{re.escape(name)}-[0-9a-f]{{12}}", draft):
            files.delete(f"{work}/{draft}")
