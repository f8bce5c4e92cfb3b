"""Stopping in the middle of a wave, and what a killed start leaves to be swept up."""

import time
from pathlib import Path
from typing import Any

import pytest

from dolly_batch.errors import AlreadyRunning
from dolly_batch.spark.files import files_for
from dolly_batch.spark.generate.waves import Generation
from dolly_batch.spark.model import resolve_model
from dolly_batch.spark.options import Options
from dolly_batch.spark.plan import planner
from dolly_batch.spark.plan.planner import make_plan
from dolly_batch.spark.tables.input import open_input
from dolly_batch.spark.tables.output import open_output
from tests.spark.desk import Desk, questions


def test_a_wave_that_was_just_started_is_stopped_too(desk: Desk) -> None:
    """Ctrl-C may come before Spark has a job that could be cancelled: these two waves would take 200 s."""
    desk.put(questions(80))
    job = desk.job(engine={"echo_delay_s": 5.0}, plan={"max_shard_rows": 20, "shards_per_slot": 1, "slots": 1})
    files, work = files_for(desk.spark, job.work_dir)
    source = open_input(desk.spark, job)
    target = open_output(desk.spark, job, source)
    model = resolve_model(desk.spark, job, work, print)
    planned = make_plan(Options(), source, target, model, files, work)
    assert planned.folder is not None

    def ctrl_c() -> None:
        raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        Generation(desk.spark, job, planned.folder, planned.plan, model, lambda: None).run(ctrl_c)
    assert time.monotonic() - begun < 60
    assert planned.folder.staged_waves() == set()


def test_prompts_that_a_killed_start_left_are_swept_up_by_the_next(desk: Desk) -> None:
    """Killed while planning, it leaves its draft; killed after the audit, the snapshot of its plan."""
    desk.put(questions(3))
    draft = desk.folder / "work" / ".planning-job-0123456789ab"
    others = desk.folder / "work" / ".planning-job-2-0123456789ab"
    for folder in (draft, others):
        (folder / "keyed").mkdir(parents=True)
    assert desk.run(work={"keep_days": 1.0}).outcome == "complete"
    assert (draft.exists(), others.exists()) == (False, True)
    assert prompts(desk)
    assert desk.run().outcome == "nothing_to_do"
    assert not prompts(desk)


def test_a_start_that_loses_the_lock_while_it_plans_leaves_no_plan(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Suspended for long: another start has taken over, swept up the draft and finished the same plan."""
    desk.put(questions(3))
    lay_out = planner.write_questions

    def suspended(*arguments: Any) -> Any:
        waves = lay_out(*arguments)
        monkeypatch.setattr(planner, "write_questions", lay_out)
        lock = desk.folder / "work" / ".job.lock"
        lock.unlink()
        assert desk.run().outcome == "complete"
        lock.write_text('{"token": "another"}')
        return waves

    monkeypatch.setattr(planner, "write_questions", suspended)
    assert isinstance(desk.refused(), AlreadyRunning)
    (desk.folder / "work" / ".job.lock").unlink()
    (plan,) = (desk.folder / "work").glob("p*")
    assert (plan / "complete.json").exists()
    assert desk.run().outcome == "nothing_to_do"


def prompts(desk: Desk) -> list[Path]:
    return [*(desk.folder / "work").glob("p*/snapshot")]
