"""GPUs on a standalone cluster, pretended ones: who asks for them, and which one an engine gets."""

import json
from pathlib import Path
from typing import Any

from tests.cluster.jobs import manifest, staged_engines, write_job
from tests.cluster.standalone import CORES, Cluster, submit
from tests.spark.desk import questions


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    (log,) = folder.iterdir()
    found = (json.loads(line) for line in log.read_text(encoding="utf-8").splitlines())
    return [event for event in found if event["Event"] == f"SparkListener{kind}"]


def test_each_executor_has_an_engine_on_its_own_gpu_and_planning_asks_for_none(
    cluster: Cluster, wheel: Path, tmp_path: Path
) -> None:
    """The paths are relative and `file:` ones: on one machine the probe lets them pass."""
    output, log = tmp_path / "out", tmp_path / "events"
    log.mkdir()
    job = write_job(
        tmp_path,
        input={"path": "input.jsonl"},
        output={"path": output.as_uri()},
        work_dir="work",
        engine={"echo_delay_s": 0.05},
    )
    ended = submit(
        "run_table.py",
        job,
        *("--master", cluster.url, "--py-files", str(wheel), "--executor-memory", "512m"),
        *("--conf", "spark.executor.resource.gpu.amount=1"),
        *("--conf", "spark.eventLog.enabled=true", "--conf", f"spark.eventLog.dir={log.as_uri()}"),
        *("--conf", "spark.eventLog.rolling.enabled=false", "--conf", "spark.eventLog.compress=false"),
    )
    assert (ended.code, ended.report.get("num_published_rows")) == (0, len(questions(24))), ended.output
    assert {name.rpartition("/")[2] for name in staged_engines(tmp_path / "work")} == {"cuda:0", "cuda:1"}
    assert ended.report["model_loads"] == 2

    # Two executors, one GPU each, two tasks on it: not the cores' number.
    assert manifest(tmp_path / "work")["slots"] == 4 < 2 * CORES
    profiles = [event["Stage Info"]["Resource Profile Id"] for event in events(log, "StageSubmitted")]
    assert len([profile for profile in profiles if profile != 0]) == ended.report["num_waves"] < len(profiles)
