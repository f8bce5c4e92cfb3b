"""kill -9 of the driver at every step of a run: the same command resumes, and pays for no wave twice."""

import contextlib
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.crash.command import Job, Start, between_data_and_commit, check_nothing_lost, check_quiet
from tests.crash.conftest import NewJob
from tests.crash.processes import hosts_of, kill, state_of, wait_for
from tests.spark.desk import asked_again, questions

# 20 of them share their answers: a question is asked once, whatever is killed.
QUESTIONS = [*questions(160), *asked_again(questions(20))]
HOST_END_S = 60.0
# Spark's shutdown hooks are its own: Hadoop's manager gives one that hangs 30 s, and its thread 30 s more.
JVM_END_S = 180.0
WAVES_IN_FLIGHT = 2

PLANNING = ["before rename */work/p*", "after rename */work/p*"]
GENERATING = ["before rename */staging/wave=0", "after rename */staging/wave=3"]
PUBLISHING = {
    "overwrite": [
        "before exists */swapping.json",
        "before write */swapping.json",
        "after write */swapping.json",
        "before rename */.out.*.old",
        "after rename */.out.*.old",
        "before rename */out",
        "after rename */out",
    ],
    "append": [
        "before exists */swapping.json",
        "before rename */out/plan_id=*",
        "after rename */out/plan_id=*",
    ],
}
ENDING = ["before write */published.json", "after write */published.json", "before write */complete.json"]


def unchanged(before: dict[str, int], job: Job) -> bool:
    """Whether every wave that was finished then is still the same one: it was not answered again."""
    now = job.staged()
    return all(now.get(name) == at for name, at in before.items())


def cut_off(job: Job) -> list[Path]:
    """The folders of waves that were begun and not finished."""
    return [*(job.folder / "work").glob("p*/staging/.wave=*")]


def hosts_are_gone(jvm: int, folders: list[Path]) -> None:
    wait_for("the end of the JVM that lost its driver", lambda: state_of(jvm) in ("", "Z"), JVM_END_S)
    wait_for("the end of the orphaned engine host", lambda: not hosts_of(jvm), HOST_END_S)
    wait_for("the end of its folder", lambda: not any(folder.exists() for folder in folders), HOST_END_S)


@pytest.mark.long
def test_a_driver_killed_while_generating_and_again_before_publishing(new_job: NewJob) -> None:
    job = new_job()
    job.put(QUESTIONS)

    start = job.start(step="SIGKILL after rename */staging/wave=2")
    jvm = start.jvm()
    folders = wait_for("an engine host", lambda: [*hosts_of(jvm).values()])
    start.killed_itself()
    finished = job.staged()
    assert 2 <= len(finished) < job.num_waves()
    assert len(cut_off(job)) <= WAVES_IN_FLIGHT
    hosts_are_gone(jvm, folders)

    start = job.start(step="SIGKILL before exists */swapping.json")
    start.killed_itself()
    assert job.all_staged()
    assert unchanged(finished, job)
    assert not (job.folder / "out").exists()
    assert f"{len(finished)} of 8 waves are finished" in start.said()

    code, report = job.start().end()
    assert code == 0, job.starts[-1].said()
    check_nothing_lost(job, report, QUESTIONS)
    assert (report["num_resumed_waves"], report["num_waves"]) == (8, 8)
    assert "8 of 8 waves were finished by earlier starts" in job.starts[-1].out.read_text()
    assert report["model_loads"] == 2  # by the first and by the second start; the third needed none


@pytest.mark.chaos
@pytest.mark.parametrize("mode", ["overwrite", "append"])
def test_a_driver_killed_at_every_step_in_turn(new_job: NewJob, mode: str) -> None:
    """Each start gets one step further than the one before; an older output is there all the while."""
    job = new_job(output={"mode": mode})
    job.put(QUESTIONS[:8])
    assert job.start().end()[0] == 0
    shutil.rmtree(job.folder / "work")
    job.put(QUESTIONS)
    finished: dict[str, int] = {}
    for step in [*PLANNING, *GENERATING, *PUBLISHING[mode], *ENDING]:
        job.start(step=f"SIGKILL {step}").killed_itself()
        assert unchanged(finished, job), step
        finished = job.staged()
        if mode == "append":
            assert len(job.rows()) in (8, 160)  # readers see all of a run or nothing
    code, report = job.start().end()
    assert code == 0, job.starts[-1].said()
    assert report["num_waves"] == 8
    assert len(job.rows()) == report["by_status"]["ok"] + (8 if mode == "append" else 0)
    assert {row["id"] for row in job.rows()} == {row["id"] for row in QUESTIONS}
    assert len(job.rows()) == len(QUESTIONS)
    assert not [path for path in job.folder.iterdir() if path.name.startswith(".out")]
    code, report = job.start().end()
    assert (code, report["outcome"]) == (0, "nothing_to_do"), job.starts[-1].said()


@pytest.mark.chaos
def test_a_driver_killed_in_the_middle_of_planning(new_job: NewJob) -> None:
    job = new_job()
    job.put(QUESTIONS)
    start = job.start()
    wait_for("a draft of the plan", lambda: [*(job.folder / "work").glob(".planning-job-*/keyed")])
    start.kill()
    assert job.plan() is None
    wait_for("the end of the JVM", lambda: not job.own_jvms(), JVM_END_S)
    code, report = job.start().end()
    assert code == 0, job.starts[-1].said()
    check_nothing_lost(job, report, QUESTIONS)
    assert not [*(job.folder / "work").glob(".planning*")]


@pytest.mark.chaos
def test_a_driver_killed_after_the_audit_has_nothing_left_to_do(new_job: NewJob) -> None:
    job = new_job()
    job.put(QUESTIONS)
    job.start(step="SIGKILL after write */complete.json").killed_itself()
    code, report = job.start().end()
    assert (code, report["outcome"]) == (0, "nothing_to_do"), job.starts[-1].said()
    assert len(job.rows()) == len(QUESTIONS)
    assert not [*(job.folder / "work").glob("p*/snapshot")]


@pytest.mark.long
def test_a_jvm_that_dies_alone_stops_the_run_with_a_message(new_job: NewJob) -> None:
    job = new_job()
    job.put(QUESTIONS)
    start = job.start()
    wait_for("two finished waves", lambda: len(job.staged()) >= 2)
    jvm, folders = start.jvm(), [*start.hosts().values()]
    kill(jvm)
    code, report = start.end()
    assert (code, report["exit_code"]) == (5, 5), start.said()
    assert start.said().splitlines()[-1].startswith("dolly-batch: the connection to Spark is lost")
    assert "Traceback" not in start.said()
    assert "run the same command to resume" in report["message"]
    finished = job.staged()
    hosts_are_gone(jvm, folders)
    code, report = job.start().end()
    assert code == 0, job.starts[-1].said()
    check_nothing_lost(job, report, QUESTIONS)
    assert len(finished) >= 2


@pytest.mark.chaos
@pytest.mark.parametrize("mode", [pytest.param("append", marks=pytest.mark.long), "merge", "overwrite"])
def test_a_driver_killed_around_the_commits_of_a_delta_table(new_job: NewJob, mode: str) -> None:
    job = new_job(output={"format": "delta", "mode": mode})
    job.put(QUESTIONS)
    job.start(step="SIGKILL before read */beside.json").killed_itself()
    assert job.all_staged()
    finished = job.staged()

    # Append and merge make an empty table first, with a commit of its own, which may be cut off too.
    for num_commits in [0] if mode == "overwrite" else [0, 1]:
        start = job.start()
        between_data_and_commit(job, start, num_commits)
        start.kill_all()
        assert job.num_commits() == num_commits
        assert not num_commits or not job.rows()

    job.start(step="SIGKILL before write */published.json").killed_itself()
    assert len(job.rows()) == len(QUESTIONS)
    assert unchanged(finished, job)

    code, report = job.start().end()
    assert code == 0, job.starts[-1].said()
    check_nothing_lost(job, report, QUESTIONS)


@pytest.mark.chaos
def test_without_the_guard_of_the_commit_the_audit_stops_the_run(new_job: NewJob) -> None:
    """The inverse: killed after an unguarded commit, the next start commits again, and never says complete."""
    job = new_job(output={"mode": "append"})
    job.put(QUESTIONS)
    unguarded = "the commit's guard"
    job.start(step="SIGKILL before write */published.json", without=unguarded).killed_itself()
    assert len(job.rows()) == len(QUESTIONS)
    code, report = job.start(without=unguarded).end()
    assert len(job.rows()) == 2 * len(QUESTIONS)
    assert (code, report["outcome"]) == (5, "AuditError"), job.starts[-1].said()
    assert "160 are repeated" in report["message"]
    with pytest.raises(AssertionError):
        check_nothing_lost(job, report, QUESTIONS)


@pytest.mark.long
def test_ctrl_c_stops_cleanly_and_the_same_command_completes(new_job: NewJob) -> None:
    job = new_job()
    job.put(QUESTIONS)
    start = job.start(step="SIGINT after rename */staging/wave=1")
    finished = stopped_cleanly(job, start)
    assert 1 <= len(finished) < job.num_waves()
    code, report = job.start().end()
    assert code == 0, job.starts[-1].said()
    assert report["num_resumed_waves"] == len(finished)
    check_nothing_lost(job, report, QUESTIONS)


def stopped_cleanly(job: Job, start: Start) -> dict[str, int]:
    """Exit 5, how to go on, and nothing else to be read; the finished waves."""
    code, report = start.end()
    assert (code, report["exit_code"], report["outcome"]) == (5, 5, "Stopped"), start.said()
    assert "run the same command to resume" in start.said()
    check_quiet(start)
    assert not (job.folder / "work" / ".job.lock").exists()
    return job.staged()


@pytest.mark.chaos
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_signalled_at_every_step_in_turn(new_job: NewJob, number: signal.Signals) -> None:
    job = new_job(output={"mode": "append"})
    job.put(QUESTIONS)
    finished: dict[str, int] = {}
    for step in ["before rename */work/p*", "after rename */staging/wave=1", "before rename */out/plan_id=*"]:
        start = job.start(step=f"{number.name} {step}")
        now = stopped_cleanly(job, start)
        assert unchanged(finished, job), step
        finished = now
    code, report = job.start().end()
    assert code == 0, job.starts[-1].said()
    check_nothing_lost(job, report, QUESTIONS)


@pytest.mark.chaos
def test_a_scheduler_that_gives_up_while_spark_starts(new_job: NewJob) -> None:
    job = new_job()
    job.put(QUESTIONS)
    start = job.start()
    start.jvm()
    start.signal(signal.SIGTERM)
    code, report = start.end()
    assert (code, report["exit_code"], report["outcome"]) == (5, 5, "Stopped"), start.said()
    check_quiet(start)


@pytest.mark.chaos
def test_an_impatient_second_and_third_ctrl_c(new_job: NewJob) -> None:
    job = new_job(engine={"echo_delay_s": 0.2})
    job.put(QUESTIONS)
    start = job.start()
    wait_for("a finished wave", lambda: len(job.staged()) >= 1)
    for _ in range(3):
        start.interrupt()
        wait_for_a_moment(start)
    code, report = start.end()
    assert (code, report["exit_code"], report["outcome"]) == (5, 5, "Stopped"), start.said()
    check_quiet(start)
    job.document["engine"]["echo_delay_s"] = 0.0
    code, report = job.start().end()
    assert code == 0, job.starts[-1].said()
    check_nothing_lost(job, report, QUESTIONS)


def wait_for_a_moment(start: Start) -> None:
    """About 0.2 s, less when the start has ended."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        start.process.wait(0.2)
