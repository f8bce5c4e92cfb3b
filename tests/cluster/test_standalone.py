"""spark-submit on a standalone cluster of two workers that hold the wheel's dependencies, but not this package."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from tests.cluster.standalone import Cluster, Ended, run_command, submit, submit_several
from tests.spark.desk import echo_document, questions


@pytest.mark.long
def test_the_shipped_wheel_gives_the_table_of_a_local_run(cluster: Cluster, wheel: Path, tmp_path: Path) -> None:
    rows = questions(60)
    (tmp_path / "input.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    document = echo_document(tmp_path)
    document["engine"] = {"kind": "plain"}
    document["model"]["dtype"] = "float32"  # in bfloat16 the company of a row can change its last bits
    document["generation"] = {"do_sample": True, "max_new_tokens": 8}
    document["plan"] = {"max_shard_rows": 8}
    starts: dict[str, Callable[[Path], Ended]] = {
        "cluster": lambda job: submit(
            "run_table.py", job, "--master", cluster.url, "--py-files", str(wheel), "--executor-memory", "1g"
        ),
        "local": run_locally,
    }
    tables, loads = {}, {}
    for name, start in starts.items():
        document |= {
            "output": {**document["output"], "path": str(tmp_path / name)},
            "work_dir": str(tmp_path / f"work-{name}"),
        }
        job = tmp_path / f"{name}.yaml"
        job.write_text(yaml.safe_dump(document), encoding="utf-8")
        ended = start(job)
        assert ended.code == 0, ended.output
        found = pq.read_table(tmp_path / name, columns=["id", "response", "status", "request_key"]).to_pylist()
        tables[name], loads[name] = sorted(found, key=lambda row: row["id"]), ended.report["model_loads"]
    assert tables["cluster"] == tables["local"]
    assert [row["id"] for row in tables["local"]] == [row["id"] for row in rows]
    assert loads["local"] == 1
    assert 1 <= loads["cluster"] <= 2


def run_locally(job: Path) -> Ended:
    """`dolly-batch run JOB` in the environment of these tests."""
    settings = ["--set", "spark.master=local[2]"]
    return run_command([sys.executable, "-m", "dolly_batch.cli", "run", str(job), "--json", *settings], job.parent)


@pytest.mark.chaos
def test_executors_with_gpus_and_without_a_shared_folder(
    cluster: Cluster, wheel: Path, hidden: Path | None, tmp_path: Path
) -> None:
    """Each generating task has its executor's GPU, by a profile; what the GPUs or the folders forbid is refused."""
    rows = questions(40)
    (tmp_path / "input.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    jobs: dict[str, dict[str, Any]] = {
        "answered": {"engine": {"kind": "echo", "echo_delay_s": 0.02}},
        "bfloat16": {"engine": {"kind": "plain"}, "model": {"path": "tiny", "dtype": "bfloat16"}},
    }
    if hidden is not None:
        jobs["hidden"] = {
            "work_dir": f"{hidden}/work",
            "model": {"path": "tiny", "stage_dir": str(tmp_path / "models")},
        }
    for name, sections in jobs.items():
        document = {
            **echo_document(tmp_path),
            "plan": {"max_shard_rows": 4},
            "work": {"keep_days": 1.0},
            **sections,
        }
        document["output"] = {**document["output"], "path": str(tmp_path / name)}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    ended = submit_several(
        tmp_path,
        [["run", f"{name}.yaml", "--json"] for name in jobs],
        *("--master", cluster.url, "--py-files", str(wheel), "--executor-memory", "1g"),
        *("--conf", "spark.executor.resource.gpu.amount=1"),
        # No job before both executors are there, so that the one without the folder is asked.
        *("--conf", "spark.scheduler.minRegisteredResourcesRatio=1.0"),
        *("--conf", "spark.scheduler.maxRegisteredResourcesWaitingTime=100s"),
    )
    reports = dict(zip(jobs, ended.reports, strict=True))

    assert reports["answered"]["exit_code"] == 0, ended.output
    assert pq.read_table(tmp_path / "answered", columns=["id"]).num_rows == 40
    (plan,) = (tmp_path / "work").glob("p*")
    assert json.loads((plan / "manifest.json").read_text())["slots"] == 4
    engines = set(pq.read_table(plan / "staging", columns=["engine_id"])["engine_id"].to_pylist())
    assert {engine.rpartition("/")[2] for engine in engines} == {"cuda:0", "cuda:1"}

    assert (reports["bfloat16"]["exit_code"], reports["bfloat16"]["outcome"]) == (4, "ConfigError"), ended.output
    assert "bfloat16 cannot run on Tesla V100-SXM2-16GB" in reports["bfloat16"]["message"]
    if hidden is not None:
        assert (reports["hidden"]["exit_code"], reports["hidden"]["outcome"]) == (4, "ConfigError"), ended.output
        assert f"work_dir: {hidden}/work is not shared" in reports["hidden"]["message"]
        assert not list(hidden.glob("work/.dolly-batch-probe-*"))
    assert not any((tmp_path / name).exists() for name in ("bfloat16", "hidden"))


@pytest.mark.chaos
def test_speculative_copies_of_tasks_leave_one_answer_a_row(cluster: Cluster, wheel: Path, tmp_path: Path) -> None:
    rows = questions(48)
    (tmp_path / "input.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    document = {**echo_document(tmp_path), "plan": {"max_shard_rows": 16}}  # three tasks for four slots
    document["engine"] = {"kind": "echo", "echo_delay_s": 0.2}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    events = tmp_path / "events"
    events.mkdir()
    speculation = {"quantile": "0.1", "multiplier": "1", "minTaskRuntime": "100ms", "task.duration.threshold": "800ms"}
    speculation["efficiency.enabled"] = "false"
    conf = {"spark.speculation": "true", **{f"spark.speculation.{name}": value for name, value in speculation.items()}}
    conf |= {"spark.eventLog.enabled": "true", "spark.eventLog.dir": str(events), "spark.eventLog.compress": "false"}
    ended = submit(
        "run_table.py",
        tmp_path / "job.yaml",
        *("--master", cluster.url, "--py-files", str(wheel), "--executor-memory", "1g"),
        *(part for name, value in conf.items() for part in ("--conf", f"{name}={value}")),
    )
    assert ended.code == 0, ended.output
    log = "".join(path.read_text() for path in events.rglob("*") if path.is_file())
    assert '"Speculative":true' in log
    table = pq.read_table(tmp_path / "out", columns=["id", "status"]).to_pylist()
    assert sorted(row["id"] for row in table) == [row["id"] for row in rows]
    assert {row["status"] for row in table} == {"ok"}
