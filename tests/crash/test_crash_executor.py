"""kill -9 of executors of a local-cluster: the run ends well, and no engine host is left behind."""

import pytest

from tests.crash.command import check_nothing_lost
from tests.crash.conftest import NewJob
from tests.crash.processes import executors_of, hosts_of, kill, wait_for
from tests.spark.desk import questions

pytestmark = pytest.mark.chaos

HOST_END_S = 60.0  # a host looks at its owner every second; the rest is a busy machine's


@pytest.mark.parametrize(
    "num_kills", [pytest.param(1, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.chaos)]
)
def test_a_run_survives_its_executors(new_job: NewJob, num_kills: int) -> None:
    rows = questions(160 * num_kills)
    job = new_job(spark={"master": "local-cluster[2,1,1024]"})
    job.put(rows)
    start = job.start()
    for number in range(1, num_kills + 1):
        wait_for(f"{2 * number} finished waves", lambda number=number: len(job.staged()) >= 2 * number)
        executor = wait_for(
            "an executor with an engine host",
            lambda: next((pid for pid in executors_of(start.pid) if hosts_of(pid)), None),
        )
        folders = [*hosts_of(executor).values()]
        assert not job.all_staged()
        kill(executor)
        wait_for("the end of the orphaned host", lambda executor=executor: not hosts_of(executor), HOST_END_S)
        wait_for(
            "the end of its folder",
            lambda folders=folders: not any(folder.exists() for folder in folders),
            HOST_END_S,
        )
    code, report = start.end()
    assert code == 0, start.said()
    check_nothing_lost(job, report, rows)
    assert 2 <= report["model_loads"] <= 2 + num_kills
