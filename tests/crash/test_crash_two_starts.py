"""Two starts of one job at once, and one that was suspended while another finished the job."""

import signal

import pytest

from tests.crash.command import check_nothing_lost
from tests.crash.conftest import NewJob
from tests.crash.processes import wait_for
from tests.spark.desk import questions

pytestmark = pytest.mark.chaos

QUESTIONS = questions(160)


def test_of_two_starts_one_works_and_a_suspended_one_cannot_add_its_rows_again(new_job: NewJob) -> None:
    job = new_job(output={"mode": "append"})
    job.put(QUESTIONS)
    one, other = job.start(), job.start()
    wait_for("the end of one of the two", lambda: not (one.is_running() and other.is_running()))
    working, refused = (one, other) if one.is_running() else (other, one)
    code, report = refused.end()
    assert (code, report["outcome"]) == (6, "AlreadyRunning"), refused.said()
    assert str(working.pid) in report["message"]

    wait_for("all waves", job.all_staged)
    working.signal(signal.SIGSTOP)
    assert job.start().end()[0] == 6  # it lives, as far as anybody can tell

    # An operator who takes it for dead removes its lock.
    assert not list((job.folder / "out").glob("plan_id=*"))
    (job.folder / "work" / ".job.lock").unlink()
    code, report = job.start().end()
    assert code == 0, job.starts[-1].said()
    check_nothing_lost(job, report, QUESTIONS)

    working.signal(signal.SIGCONT)
    code, _ = working.end()
    assert code in (5, 6), working.said()
    check_nothing_lost(job, report, QUESTIONS)
    code, report = job.start().end()
    assert (code, report["outcome"]) == (0, "nothing_to_do"), job.starts[-1].said()
