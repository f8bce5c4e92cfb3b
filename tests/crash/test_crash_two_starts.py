"""Two starts of one job at once, and one that was suspended just before its commit while another finished the job."""

import shutil

import pytest

from tests.crash.command import Job, Start, between_data_and_commit, check_nothing_lost
from tests.crash.conftest import NewJob
from tests.crash.processes import wait_for
from tests.spark.desk import asked_again, questions

pytestmark = pytest.mark.chaos

# 20 of them share their answers: a question is asked once, whatever is killed.
QUESTIONS = [*questions(160), *asked_again(questions(20))]


@pytest.mark.long
def test_of_two_starts_one_works_and_the_other_says_who(new_job: NewJob) -> None:
    job = new_job(output={"mode": "append"})
    job.put(QUESTIONS)
    one, other = job.start(), job.start()
    wait_for("the end of one of the two", lambda: not (one.is_running() and other.is_running()))
    working, refused = (one, other) if one.is_running() else (other, one)
    code, report = refused.end()
    assert (code, report["outcome"]) == (6, "AlreadyRunning"), refused.said()
    assert str(working.pid) in report["message"]
    code, report = working.end()
    assert code == 0, working.said()
    check_nothing_lost(job, report, QUESTIONS)


def test_two_starts_that_find_the_lock_of_a_dead_one(new_job: NewJob) -> None:
    """Both may take it over; then the first to look again stops."""
    job = new_job(output={"mode": "append"})
    job.put(QUESTIONS)
    job.start(step="SIGKILL after rename */staging/wave=1").killed_itself()
    assert (job.folder / "work" / ".job.lock").exists()
    ends = [start.end() for start in [job.start(), job.start()]]
    assert sorted(code for code, _ in ends) == [0, 6], [start.said() for start in job.starts[1:]]
    check_nothing_lost(job, next(report for code, report in ends if code == 0), QUESTIONS)


@pytest.mark.parametrize(
    ("mode", "step"),
    [
        ("append", "before rename */out/plan_id=*"),
        ("overwrite", "before write */swapping.json"),
        ("overwrite", "before rename */.out.*.old"),
        ("overwrite", "before rename */out"),
    ],
)
def test_a_start_suspended_before_its_commit_to_parquet(new_job: NewJob, mode: str, step: str) -> None:
    job = new_job(output={"mode": mode})
    if "old" in step:
        job.put(questions(8, start=1000))
        assert job.start().end()[0] == 0
        shutil.rmtree(job.folder / "work")
    job.put(QUESTIONS)
    working = job.start(step=f"SIGSTOP {step}")
    working.stopped_itself()
    assert job.start().end()[0] == 6  # it lives, as far as anybody can tell
    another_finishes(job)
    working.resume()
    nothing_was_added(job, working)


@pytest.mark.parametrize("mode", [pytest.param("append", marks=pytest.mark.long), "merge", "overwrite"])
def test_a_start_suspended_before_its_commit_to_delta(new_job: NewJob, mode: str) -> None:
    job = new_job(output={"format": "delta", "mode": mode})
    job.put(QUESTIONS)
    working = job.start()
    between_data_and_commit(job, working, num_commits=0 if mode == "overwrite" else 1)
    working.suspend_all()
    another_finishes(job)
    working.resume()
    nothing_was_added(job, working)


def another_finishes(job: Job) -> None:
    """An operator who takes the suspended start for dead removes its lock."""
    (job.folder / "work" / ".job.lock").unlink()
    code, report = job.start().end()
    assert code == 0, job.starts[-1].said()
    check_nothing_lost(job, report, QUESTIONS)


def nothing_was_added(job: Job, working: Start) -> None:
    before = sorted(map(repr, job.rows()))
    code, report = working.end()
    assert (code, report["outcome"]) == (6, "AlreadyRunning"), working.said()
    assert sorted(map(repr, job.rows())) == before
    assert len(before) == len(QUESTIONS)
    assert not [path for path in job.folder.iterdir() if path.name.startswith(".out")]
