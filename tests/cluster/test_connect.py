"""plan, run and status through Spark Connect, each in a process of its own."""

import os
import sys
from pathlib import Path

import pytest

from tests.cluster.jobs import answers, write_job
from tests.cluster.standalone import Ended, java_home, run_command

REAL = {"engine": {"kind": "plain"}, "generation": {"do_sample": True, "max_new_tokens": 8}}
FLOAT32 = {"path": "tiny", "dtype": "float32"}  # in bfloat16 the company of a row can change its last bits


def command(job: Path, verb: str, *arguments: str) -> Ended:
    env = os.environ | {"JAVA_HOME": java_home(), "OMP_NUM_THREADS": "1"}
    return run_command([sys.executable, "-m", "dolly_batch.cli", verb, str(job), "--json", *arguments], job.parent, env)


def test_plan_run_and_status_work_over_connect_and_give_the_table_of_a_local_run(
    connect_url: str, tmp_path: Path
) -> None:
    job = write_job(tmp_path, model=FLOAT32, spark={"remote": connect_url}, **REAL)
    plan = command(job, "plan")
    assert (plan.code, plan.report.get("outcome")) == (0, "planned"), plan.output
    assert not (tmp_path / "out").exists()
    run = command(job, "run")
    assert (run.code, run.report.get("outcome"), run.report.get("model_loads")) == (0, "complete", 1), run.output
    assert run.report["num_prompt_tokens"] == plan.report["num_prompt_tokens"]
    status = command(job, "status", "--full")
    assert (status.code, status.report.get("by_status")) == (0, run.report["by_status"]), status.output
    assert command(job, "run").report["outcome"] == "nothing_to_do"

    section = {"master": "local[2]", "conf": {"spark.sql.shuffle.partitions": "4"}}
    output = {"path": str(tmp_path / "local")}
    local = command(write_job(tmp_path, "local", model=FLOAT32, spark=section, output=output, **REAL), "run")
    assert local.code == 0, local.output
    assert answers(tmp_path / "out") == answers(tmp_path / "local")
    assert len(answers(tmp_path / "local")) == 24


@pytest.mark.parametrize(
    ("setting", "outcome", "named"),
    [
        ("input={table: nowhere}", "InputError", "nowhere"),
        ("input.where=nothing > 3", "InputError", "input.where"),
        ("output.format=delta", "Refused", "no Delta connector"),
    ],
)
def test_what_only_the_server_knows_is_refused_before_any_work(
    connect_url: str, tmp_path: Path, setting: str, outcome: str, named: str
) -> None:
    job = write_job(tmp_path, spark={"remote": connect_url})
    ended = command(job, "run", "--set", setting)
    assert (ended.code, ended.report.get("outcome")) == (4, outcome), ended.output
    assert named in ended.report["message"]
    assert len(ended.output.splitlines()) == 2  # the message, and the report
    assert not (tmp_path / "out").exists()
