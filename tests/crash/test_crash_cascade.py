"""kill -9 at every step of a cascade, and a start that is suspended with its proxy in hand: the table is the same."""

import json
from collections import Counter
from typing import Any

import pytest

from tests.crash.command import Job, Start
from tests.crash.conftest import NewJob
from tests.spark.cascade_desk import again, prepared, told

pytestmark = pytest.mark.chaos
pytest.importorskip("sklearn")

ROWS = [*told(260), *again(told(20))]
STEPS = [
    "before rename */work/p*",
    "after rename */work/p*",
    "after rename */staging/wave=1",
    "before rename */proxy.json",
    "after rename */proxy.json",
    "after rename */staging/wave=3",
    "before exists */swapping.json",
    "before write */published.json",
    "before write */complete.json",
]


def cascade_job(new_job: NewJob, mode: str = "overwrite") -> Job:
    job = new_job()
    prepared(job.document, job.folder, shard_rows=40)
    job.document["output"]["mode"] = mode
    job.document["task"]["cascade"] = {"agreement": 0.85, "sample": 120}
    job.document["engine"]["echo_delay_s"] = 0.005
    job.put(ROWS)
    return job


def check(job: Job, report: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Each row once, and statuses, answerers and questions that add up; what the table says of each row."""
    rows = job.rows()
    assert Counter(row["id"] for row in rows) == Counter(row["id"] for row in ROWS)
    assert report["outcome"] == "complete"
    assert report["by_status"] == {"ok": len(ROWS)} == job.marker("published.json")["by_status"]
    by = dict(Counter(row["answered_by"] for row in rows))
    assert report["answered_by"] == by == job.marker("complete.json")["answered_by"]
    assert by["model"] + by["proxy"] == len(ROWS)
    asked = report["num_answered_by_model"] + report["num_answered_by_proxy"]
    assert (asked, report["num_shared_rows"]) == (260, 20)
    assert report["num_answered_by_proxy"] > 80
    kept = job.plan()
    assert kept is not None
    hash = json.loads((kept / "proxy.json").read_text())["hash"]
    assert {row["proxy_hash"] for row in rows if row["answered_by"] == "proxy"} == {hash}
    return {row["id"]: (row["response"], row["margin"], row["answered_by"], row["proxy_hash"]) for row in rows}


def done(job: Job, start: Start) -> dict[str, tuple[Any, ...]]:
    code, report = start.end()
    assert code == 0, start.said()
    return check(job, report)


def test_a_cascade_killed_at_every_step_in_turn_makes_the_table_of_one_that_was_not(
    new_job: NewJob, tmp_path: Any
) -> None:
    job = cascade_job(new_job)
    for step in STEPS:
        job.start(step=f"SIGKILL {step}").killed_itself()
    killed = done(job, job.start())
    job.document["output"]["path"] = str(tmp_path / "other")
    job.document["name"] = "whole"
    whole = job.start()
    code, report = whole.end()
    assert (code, report["num_resumed_waves"]) == (0, 0), whole.said()
    job.folder.joinpath("out").rename(job.folder / "killed")
    job.folder.joinpath("other").rename(job.folder / "out")
    rows = {row["id"]: (row["response"], row["margin"], row["answered_by"], row["proxy_hash"]) for row in job.rows()}
    assert rows == killed


@pytest.mark.parametrize("step", ["before rename */proxy.json", "after rename */proxy.json"])
def test_a_start_suspended_with_its_proxy_in_hand_adds_nothing(new_job: NewJob, step: str) -> None:
    job = cascade_job(new_job, "append")
    working = job.start(step=f"SIGSTOP {step}")
    working.stopped_itself()
    (job.folder / "work" / ".job.lock").unlink()  # an operator takes it for dead
    table = done(job, job.start())
    working.resume()
    code, report = working.end()
    assert (code, report["outcome"]) == (6, "AlreadyRunning"), working.said()
    rows = {row["id"]: (row["response"], row["margin"], row["answered_by"], row["proxy_hash"]) for row in job.rows()}
    assert rows == table
    plan = job.plan()
    assert plan is not None
    assert not [*plan.rglob(".proxy.*")]


def test_of_two_starts_of_a_cascade_one_works(new_job: NewJob) -> None:
    job = cascade_job(new_job, "append")
    job.start(step="SIGKILL after rename */proxy.json").killed_itself()
    ends = [(start, start.end()) for start in [job.start(), job.start()]]
    assert sorted(code for _, (code, _) in ends) == [0, 6], [start.said() for start, _ in ends]
    check(job, next(report for _, (code, report) in ends if code == 0))
