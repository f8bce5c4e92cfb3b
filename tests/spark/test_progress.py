"""How far a run is: counted from its tasks, told in the log, in Spark's UI and to `status`, and kept for the report."""

import json
import logging
from collections.abc import Callable
from dataclasses import astuple
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dolly_batch.page.pages import plan_page
from dolly_batch.report import Progress, Report
from dolly_batch.spark.generate import tracker as tracking
from dolly_batch.spark.generate.progress import TaskCounts
from dolly_batch.spark.generate.tracker import Tracker, read_kept
from dolly_batch.spark.local_files import LocalFiles
from dolly_batch.spark.plan.manifest import Plan, PlanFolder, Wave
from dolly_batch.spark.plans import plan_report
from dolly_batch.spark.status import _as_of, read_status
from tests.spark.desk import Desk, questions

PLAN_PARTS: dict[str, Any] = {
    **{"plan_id": "p1", "name": "job", "created_at": "2026-01-01", "header": "", "destination": "", "model": "tiny"},
    **{"model_revision": None, "model_identity": "", "model_folder": "", "output_schema": "", "num_ids": 1},
    **{"num_rows": 30, "num_existing": 0, "num_carried_over": 0, "num_skipped": 0, "skipped": {}},
    **{"num_prompt_tokens": 300, "estimated_s": 1.0, "slots": 2, "retries": False},
}
WAVES = tuple(Wave(number, 10, 2) for number in range(3))


class Clock:
    """A time that a test sets, in seconds."""

    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


def tracked(folder: Path, clock: Callable[[], float]) -> Tracker:
    plan = Plan(**PLAN_PARTS, waves=WAVES)
    return Tracker(PlanFolder(LocalFiles(), str(folder)), plan, now=clock)


def write(folder: Path, wave: int, task: int, *counts: float, host: str = "node") -> None:
    path = folder / "progress" / f"wave={wave}" / str(task)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*counts, host]))


def looked(tracker: Tracker, clock: Clock, passed_s: float) -> Progress:
    clock.s += passed_s
    progress = tracker.look()
    assert progress is not None
    return progress


def test_waves_are_counted_from_begin_to_end_over_two_starts(tmp_path: Path) -> None:
    clock = Clock()
    first = tracked(tmp_path, clock)
    for wave in WAVES[:2]:
        assert first.begin(wave).folder == str(tmp_path / "progress" / f"wave={wave.number}")
    write(tmp_path, 0, 0, 3, 30, 40, 1, 5.0)
    write(tmp_path, 0, 1, 2, 20, 20, 0, 9.0, host="slow-node")
    (tmp_path / "progress" / "wave=0" / "2").write_text("3 40")  # as an earlier version wrote it
    assert (looked(first, clock, 20).num_rows, first.look()) == (5, None)
    write(tmp_path, 0, 1, 7, 70, 60, 0, 30.0, host="slow-node")
    first.finish(WAVES[0])
    write(tmp_path, 1, 0, 5, 50, 50, 2, 4.0)
    progress = looked(first, clock, 20)
    assert (progress.num_rows, progress.num_tokens, progress.num_errors, progress.num_finished_waves) == (15, 150, 3, 1)
    assert (progress.rows_per_s, progress.tokens_per_s, progress.left_s) == (0.5, 4.5, 30.0)
    first.close()
    (tmp_path / "staging" / "wave=0").mkdir(parents=True)

    kept = read_kept(first.folder)
    assert Progress(**kept["progress"]).num_rows == 15
    assert kept["waves"]["0"] == [10, 100, 100, 1, 1000.0, 1020.0, 2, 35.0, 1, 30.0, "slow-node"]
    second = tracked(tmp_path, clock)
    assert second.begin(WAVES[1]).folder is not None
    assert not (tmp_path / "progress" / "wave=1").exists()  # what the killed start has left is no progress
    assert (looked(second, clock, 60).num_rows, len(read_kept(second.folder)["starts"])) == (10, 2)


ODD = [
    '{"waves": {"0"',
    '{"waves": {"0": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, "a", "b"]}}',
    '{"waves": {"0": [1, 2, 3, 4, "5", 6, 7, 8, 9, 10, "a"]}}',
    '{"waves": {"0": [null, null, null, 4, 5, 6, 7, 8, 9, 10, "a"], "one": [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, "a"]}}',
    '{"waves": {"0": [NaN, 2, 3, 4, 5, 6, 7, 8, 9, 1e999, "a"]}}',
    '{"waves": {"0": null}, "starts": null, "progress": null}',
    '{"waves": [1], "starts": {"0": 1}, "progress": [1]}',
    '{"starts": [null, [null], [[1]], [[1, 2, 3, "4"], [2, 3, 4, 5]], "text"]}',
    "7",
]


@pytest.mark.parametrize("text", ODD)
def test_a_file_that_is_torn_or_of_another_version_counts_as_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "progress.json").write_text(text)
    (tmp_path / "staging" / "wave=0").mkdir(parents=True)
    plan = Plan(**PLAN_PARTS, waves=WAVES)
    assert "Speed over time" not in plan_page(plan_report(PlanFolder(LocalFiles(), str(tmp_path)), plan))
    tracker = tracked(tmp_path, clock := Clock())
    assert looked(tracker, clock, 10).num_rows == 10
    tracker.close()
    kept = read_kept(tracker.folder)
    assert kept["waves"] == {"0": [10, 0, 0, 0, 0.0, 0.0, 0, 0.0, 0, 0.0, ""]}
    assert kept["progress"]["num_rows"] == 10


def test_no_fault_of_what_is_shown_ends_a_run(tmp_path: Path) -> None:
    tracker = tracked(tmp_path, clock := Clock())
    tracker.begin(WAVES[0])
    (tmp_path / "progress" / "wave=0").mkdir(parents=True)
    (tmp_path / "progress" / "wave=0" / "0").write_text('["3", null]')
    clock.s += 10
    assert tracker.look() is None
    tracker.finish(WAVES[0])
    (tmp_path / "progress.json").mkdir()  # it cannot be written either
    assert looked(tracker, clock, 10).num_rows == 10
    tracker.close()


@pytest.mark.parametrize(
    ("age_s", "num_finished", "is_active", "says"),
    [
        (10, 3, None, "s ago): 3 of 3 waves"),
        (600, 1, False, "no run is active"),
        (600, 3, True, "a run is active: all waves are finished, and it publishes"),
        (600, 1, True, "a run is active that has not answered since: it starts, trains a proxy"),
    ],
)
def test_a_silent_run_is_judged_by_its_lock(age_s: int, num_finished: int, is_active: bool | None, says: str) -> None:
    progress = Progress(
        (datetime.now(UTC) - timedelta(seconds=age_s)).isoformat(timespec="seconds"), 3, num_finished, 30, 10, 0, 0
    )
    asked: list[bool] = []

    def look() -> bool:
        asked.append(True)
        return bool(is_active)

    line = _as_of(progress, look)
    assert says in line
    assert len(asked) == (is_active is not None)
    assert line.count("\n") == len(asked)


@pytest.mark.parametrize("by_files", [True, pytest.param(False, marks=pytest.mark.chaos)], ids=["files", "accumulator"])
def test_a_run_without_a_terminal_says_how_far_it_is(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, by_files: bool
) -> None:
    """The same numbers in the log, by `status` while the run goes on, and at its end in the plan's folder."""
    monkeypatch.setattr(tracking, "SAY_EVERY_S", 0.0)
    monkeypatch.setattr(tracking, "KEEP_EVERY_S", 0.0)
    if not by_files:  # as where only Hadoop reaches the work folder
        monkeypatch.setattr(PlanFolder, "progress", lambda self, wave: None)
    desk.put([*questions(20), {"id": "long", "instruction": "many words " * 3000}])
    job = desk.job(plan={"slots": 2, "shards_per_slot": 1, "max_shard_rows": 5, "waves_in_flight": 1})
    lines, shown = [], []

    class Look(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            if by_files and len(lines) == 2:
                shown.append(read_status(job))

    log, look = logging.getLogger("dolly_batch.progress"), Look()
    monkeypatch.setattr(log, "level", logging.INFO)
    log.addHandler(look)
    try:
        report: Report = desk.run(plan=job.plan.model_dump())
    finally:
        log.removeHandler(look)
    assert all(line.startswith("job: ") and " of 2 waves" in line and "errors: 0" in line for line in lines)
    assert all(lines[0].removeprefix("job: ") in status.message for status in shown)
    kept = json.loads((desk.folder / "work" / str(report.plan_id) / "progress.json").read_text())
    total = [sum(column) for column in zip(*(counts[:4] for counts in kept["waves"].values()), strict=True)]
    assert total == [20, report.num_prompt_tokens, report.num_generated_tokens, 0]
    assert Progress(**kept["progress"]).num_rows == 20
    sc = desk.spark.sparkContext
    ids = sc.statusTracker().getJobIdsForGroup(report.plan_id)
    job_of: Any = sc._jsc.sc().statusStore().job
    descriptions = {job_of(number).description().get() for number in ids}
    assert {text.split(";")[0] for text in descriptions} == {f"job: wave {n}, {r} rows" for n, r in waves_of(kept)}


def waves_of(kept: dict[str, Any]) -> list[tuple[int, int]]:
    return [(int(number), counts[0]) for number, counts in kept["waves"].items()]


def test_counts_cross_as_they_are() -> None:
    counts = TaskCounts(3, 40, 5, 1, 2.5, "node")
    assert TaskCounts(*json.loads(json.dumps(astuple(counts)))) == counts
