"""kill -9 of the driver, and Ctrl-C: the same command goes on from there."""

import signal
from pathlib import Path

import pytest

from tests.crash.command import Job, check_nothing_lost
from tests.crash.conftest import NewJob
from tests.crash.processes import hosts_of, wait_for
from tests.spark.desk import questions

pytestmark = pytest.mark.chaos

QUESTIONS = questions(160)
HOST_END_S = 15.0


def unchanged(before: dict[str, int], job: Job) -> bool:
    """Whether every wave that was finished then is still the same one: it was not answered again."""
    now = job.staged()
    return bool(before) and all(now.get(name) == at for name, at in before.items())


def hosts_are_gone(jvm: int, folders: list[Path]) -> None:
    wait_for("the end of the orphaned engine host", lambda: not hosts_of(jvm), HOST_END_S)
    assert folders
    wait_for("the end of its folder", lambda: not any(folder.exists() for folder in folders), HOST_END_S)


def test_a_driver_killed_at_every_step_is_taken_up_by_the_same_command(new_job: NewJob) -> None:
    job = new_job()
    job.put(QUESTIONS)

    start = job.start()
    wait_for("three finished waves", lambda: len(job.staged()) >= 3)
    jvm, folders = start.jvm(), [*start.hosts().values()]
    start.kill()
    finished = job.staged()
    assert len(finished) < job.num_waves()
    hosts_are_gone(jvm, folders)

    start = job.start()
    wait_for("all waves", job.all_staged)
    start.kill()
    assert unchanged(finished, job)
    assert not (job.folder / "out").exists()
    finished = job.staged()

    start = job.start()
    wait_for("the commit", (job.folder / "out" / "_SUCCESS").exists)
    start.kill()
    plan = job.plan()
    assert plan is not None
    assert not (plan / "published.json").exists()

    code, report = job.start().end()
    assert code == 0, job.starts[-1].said()
    check_nothing_lost(job, report, QUESTIONS)
    assert report["num_waves"] == len(finished)
    assert not list((job.folder).glob(".out*"))


def test_ctrl_c_and_sigterm_stop_cleanly_and_the_same_command_completes(new_job: NewJob) -> None:
    job = new_job()
    job.put(QUESTIONS)

    start = job.start()
    wait_for("two finished waves", lambda: len(job.staged()) >= 2)
    start.interrupt()
    code, report = start.end()
    assert (code, report["exit_code"], report["outcome"]) == (5, 5, "Stopped"), start.said()
    assert "the same command goes on" in start.said()
    assert "Traceback" not in start.said()
    finished = job.staged()
    assert len(finished) < job.num_waves()

    start = job.start()
    wait_for("two more waves", lambda: len(job.staged()) >= len(finished) + 2)
    start.signal(signal.SIGTERM)
    code, report = start.end()
    assert (code, report["exit_code"]) == (5, 5), start.said()
    assert "the same command goes on" in start.said()
    assert unchanged(finished, job)

    code, report = job.start().end()
    assert code == 0, job.starts[-1].said()
    check_nothing_lost(job, report, QUESTIONS)
