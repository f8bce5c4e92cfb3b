"""kill -9 of Python workers and of engine hosts while they answer: Spark runs the tasks again, on a new host."""

import os
import sys
from pathlib import Path

import pytest

from tests.crash.command import Job, Start, check_nothing_lost
from tests.crash.conftest import NewJob
from tests.crash.processes import hosts_of, kill, resume, suspend, wait_for, workers_of
from tests.spark.desk import questions

QUESTIONS = questions(160)


def suspended_host(job: Job, start: Start, num_waves: int) -> int:
    """The engine host, suspended while rows are with it, when so many waves are finished: their tasks wait for it."""
    wait_for(f"{num_waves} finished waves", lambda: len(job.staged()) >= num_waves)
    jvm = start.jvm()
    host = wait_for("the engine host", lambda: next(iter(hosts_of(jvm)), None))
    suspend(host)
    assert len(job.staged()) < job.num_waves()
    wait_for("a wave that is begun", lambda: [*(job.folder / "work").glob("p*/staging/.wave=*/_temporary")])
    return host


def kill_workers(start: Start) -> int:
    workers = wait_for("Python workers", lambda: workers_of(start.jvm()))
    for worker in workers:
        kill(worker)
    return len(workers)


@pytest.mark.long
def test_a_run_survives_its_python_workers_and_its_engine_host(new_job: NewJob) -> None:
    job = new_job(engine={"echo_delay_s": 0.08})
    job.put(QUESTIONS)
    start = job.start()
    host = suspended_host(job, start, num_waves=1)
    assert kill_workers(start)
    resume(host)
    kill(suspended_host(job, start, num_waves=len(job.staged()) + 1))
    code, report = start.end()
    assert code == 0, start.said()
    check_nothing_lost(job, report, QUESTIONS)
    assert report["model_loads"] == 2


@pytest.mark.chaos
def test_python_workers_killed_again_and_again(new_job: NewJob) -> None:
    """Four slots; the kills come faster than a wave, and stop before a task has failed four times."""
    job = new_job(engine={"echo_delay_s": 0.05}, spark={"master": "local[4]"}, plan={"slots": 4})
    job.put(QUESTIONS)
    start = job.start()
    for number in range(1, 4):
        host = suspended_host(job, start, num_waves=number)
        assert kill_workers(start)
        resume(host)
    code, report = start.end()
    assert code == 0, start.said()
    check_nothing_lost(job, report, QUESTIONS)
    assert report["model_loads"] == 1


@pytest.mark.chaos
@pytest.mark.parametrize("master", ["local[2]", "local[4]"])
def test_a_loaded_model_is_lost_with_its_host_and_loaded_once_more(new_job: NewJob, master: str) -> None:
    job = new_job(
        engine={"kind": "plain"},
        generation={"max_new_tokens": 24},
        spark={"master": master},
        plan={"max_shard_rows": 6},
    )
    rows = questions(96)
    job.put(rows)
    start = job.start()
    kill(suspended_host(job, start, num_waves=2))
    code, report = start.end()
    assert code == 0, start.said()
    check_nothing_lost(job, report, rows)
    assert report["model_loads"] == 2
    assert set(report["by_status"]) <= {"ok", "truncated", "empty_response"}


@pytest.mark.chaos
def test_rows_that_kill_their_host_each_time_fail_alone(new_job: NewJob) -> None:
    """Two of them in one wave, in shards of two tasks that share a host; and no start has to be repeated."""
    job = new_job(engine={"echo_delay_s": 0.01}, plan={"max_shard_rows": 40, "shards_per_slot": 2})
    rows = [dict(row) for row in questions(160)]
    deadly = {rows[30]["id"], rows[110]["id"]}
    for row in rows:
        row["instruction"] += " This row is deadly." if row["id"] in deadly else ""
    job.put(rows)
    path = os.pathsep.join([str(Path(__file__).with_name("deadly")), os.environ.get("PYTHONPATH", "")])
    start = job.start(PYTHONPATH=path)
    code, report = start.end()
    assert code == 0, start.said()
    found = job.rows()
    assert sorted(row["id"] for row in found) == [row["id"] for row in rows]
    assert {row["id"] for row in found if row["status"] != "ok"} == deadly
    assert {row["status"] for row in found if row["id"] in deadly} == {"model_error"}
    assert all("with no other row in work" in row["error"] for row in found if row["id"] in deadly)
    assert report["by_status"] == {"ok": 158, "model_error": 2}
    print(f"{report['model_loads']} loads", file=sys.stderr)
