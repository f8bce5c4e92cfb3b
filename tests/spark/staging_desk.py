"""A job that is stopped between its steps: planned and staged, not yet published."""

from dataclasses import dataclass, replace
from typing import Any

from dolly_batch.config.job import JobConfig
from dolly_batch.spark.audit import Findings, audit
from dolly_batch.spark.files import files_for
from dolly_batch.spark.generate.waves import Generation
from dolly_batch.spark.model import resolve_model
from dolly_batch.spark.options import Options
from dolly_batch.spark.plan.manifest import Plan, PlanFolder
from dolly_batch.spark.plan.planner import make_plan
from dolly_batch.spark.publish import publish
from dolly_batch.spark.tables.input import open_input
from dolly_batch.spark.tables.output import OutputTable, open_output
from tests.spark.desk import Desk


@dataclass(frozen=True)
class Staged:
    """A plan whose waves are finished."""

    job: JobConfig
    target: OutputTable
    folder: PlanFolder
    plan: Plan

    def publish(self) -> None:
        publish(self.target, self.folder, self.plan)

    def audit(self) -> Findings:
        return audit(self.target, self.folder, self.plan)


def staged(desk: Desk, reverse: bool = False, **sections: Any) -> Staged:
    """Plan the desk's job and run its waves, the last first if `reverse`; the steps of `run_job` up to the commit."""
    job, spark = desk.job(**sections), desk.spark
    files, work = files_for(spark, job.work_dir)
    source = open_input(spark, job)
    target = open_output(spark, job, source)
    model = resolve_model(spark, job, work, print)
    planned = make_plan(Options(), source, target, model, files, work)
    assert planned.folder is not None, "nothing is left to do"
    folder, plan = planned.folder, planned.plan
    order = replace(plan, waves=tuple(reversed(plan.waves))) if reverse else plan
    Generation(spark, job, folder, order, model, lambda: None).run(lambda: None)
    return Staged(job, target, folder, plan)
