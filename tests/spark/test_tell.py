"""What MLflow and OpenLineage are told of a run, by their real clients into local files; nothing of a row's text."""

import importlib
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dolly_batch.config.job import JobConfig, check_job
from dolly_batch.config.tables import OutputConfig
from dolly_batch.errors import ConfigError
from dolly_batch.report import PlanReport
from dolly_batch.spark.tell import others
from dolly_batch.spark.tell.lineage_event import dataset_name, place_name
from dolly_batch.spark.tell.mlflow_run import metrics, parameters
from tests.spark.desk import Desk

SECRET = "Agnes-Oyelaran"
has_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="no MLflow: pip install 'dolly-batch[mlflow]'")
has_openlineage = pytest.mark.skipif(
    find_spec("openlineage") is None, reason="no OpenLineage: pip install 'dolly-batch[lineage]'"
)


def rows_with_secrets(desk: Desk) -> None:
    texts = {"r1": f"I am {SECRET}", "r2": f"{SECRET} " * 5000, f"{SECRET} Jr": "word " * 5000, "r4": ""}
    desk.put([{"id": id, "instruction": text, "context": None} for id, text in texts.items()])


@pytest.mark.chaos
@has_mlflow
def test_a_run_is_logged_to_mlflow(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    store = tmp_path / "store"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "tickets")
    rows_with_secrets(desk)
    report = desk.run(report={"html": False, "mlflow": True}, tags={"team": "support"})
    client = mlflow.MlflowClient(store.as_uri())
    experiment = client.get_experiment_by_name("tickets")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.data.tags["dolly_batch.team"]) == ("FINISHED", "support")
    assert run.data.params["plan_id"] == report.plan_id
    assert run.data.params["generation.do_sample"] == "False"
    assert run.data.metrics["by_status.too_long"] == 2
    assert run.data.metrics["num_generated_tokens"] == report.num_generated_tokens
    (kept,) = store.rglob("report.json")
    assert json.loads(kept.read_text())["by_status"] == report.by_status
    assert "too_long" in next(store.rglob("report.html")).read_text()
    assert not [path for path in store.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


@pytest.mark.chaos
@has_openlineage
def test_one_event_goes_from_the_input_to_the_output(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = tmp_path / "events.jsonl"
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "file")
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__LOG_FILE_PATH", str(events))
    monkeypatch.setenv("OPENLINEAGE__TRANSPORT__APPEND", "true")
    rows_with_secrets(desk)
    report = desk.run(report={"html": False, "openlineage": True})
    (event,) = (json.loads(line) for line in events.read_text().splitlines())
    assert (event["eventType"], event["job"]["name"]) == ("COMPLETE", "job")
    assert [(part["namespace"], part["name"]) for part in (*event["inputs"], *event["outputs"])] == [
        ("file", str(desk.folder / "input.jsonl")),
        ("file", str(desk.folder / "out")),
    ]
    assert event["outputs"][0]["outputFacets"]["outputStatistics"]["rowCount"] == 4
    assert event["run"]["facets"]["processing_engine"]["version"] == desk.spark.version
    assert SECRET not in events.read_text()
    assert report.outcome == "complete"


def job(**report: bool) -> JobConfig:
    document: dict[str, Any] = {"name": "job", "model": {"path": "tiny"}, "work_dir": "work", "report": report}
    tables = {"input": {"path": "in.jsonl", "format": "json"}, "output": {"path": "out"}}
    return check_job({**document, **tables}, "the test")


@pytest.mark.parametrize(("key", "extra"), [("mlflow", "mlflow"), ("openlineage", "lineage")])
def test_a_client_that_is_not_there_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, key: str, extra: str
) -> None:
    monkeypatch.setattr(others, "find_spec", lambda module: None)
    others.check_clients(job())
    with pytest.raises(ConfigError, match=rf"report\.{key} needs .*dolly-batch\[{extra}\]"):
        others.check_clients(job(**{key: True}))


def test_another_package_of_that_name_is_no_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "openlineage" / "sql").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "openlineage"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match=r"dolly-batch\[lineage\]"):
        others.check_clients(job(openlineage=True))
    (tmp_path / "openlineage").rename(tmp_path / "other")
    monkeypatch.delitem(sys.modules, "openlineage", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match=r"dolly-batch\[lineage\]"):
        others.check_clients(job(openlineage=True))


def test_what_fails_is_named_and_costs_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[str] = []

    def fail(*parts: object) -> str:
        raise ConnectionError("no route to https://user:hunter2@tracking.example\nand a second line")

    monkeypatch.setattr(others, "log_run", fail)
    monkeypatch.setattr(others, "emit_run", lambda *parts: told.append("event"))
    spark: Any = None
    plan: Any = PlanReport("p", "job", "", "", "", 0, 0, 0)
    monkeypatch.setattr(PlanReport, "input_version", None, raising=False)
    others.tell_others(spark, job(mlflow=True, openlineage=True), plan, lambda: plan)
    said = capsys.readouterr().err
    assert "MLflow was not told of this run: ConnectionError: no route to" in said
    assert "hunter2" not in said
    assert "second" not in said
    assert told == ["event"]


def test_parameters_and_metrics_are_flat() -> None:
    ran = {"model": {"path": "tiny", "revision": None}, "generation": {"do_sample": False, "top_p": 0.9}}
    plan = PlanReport("p1", "job", "", "complete", "tiny", 1, 1, 1, details={"ran": ran})
    assert parameters(plan, 7) == {
        **{"model.path": "tiny", "generation.do_sample": "False", "generation.top_p": "0.9"},
        **{"job": "job", "plan_id": "p1", "input.version": "7"},
    }
    report = {"num_answered_by_model": 10, "num_generated_tokens": 50, "seconds": {"generate": 5.0}, "cost": None}
    assert metrics({**report, "by_status": {"ok": 10}, "message": "x", "exit_code": 0}) == {
        **{"num_answered_by_model": 10, "num_generated_tokens": 50, "seconds.generate": 5.0, "by_status.ok": 10},
        **{"rows_per_s": 2.0, "tokens_per_s": 10.0},
    }
    assert metrics(report | {"num_begun_tokens": 20})["tokens_per_s"] == 6.0  # reused ones were not generated


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("/data/in.parquet", ("file", "/data/in.parquet")),
        ("file:/data/in", ("file", "/data/in")),
        ("s3a://bucket/a/b/", ("s3://bucket", "a/b")),
        ("s3a://bucket/a#b/c?d=e", ("s3://bucket", "a#b/c?d=e")),
        ("file:///data/in#1", ("file", "/data/in#1")),
        ("/data/in#1?", ("file", "/data/in#1?")),
        ("abfss://box@account.dfs.core.windows.net/a", ("abfss://box@account.dfs.core.windows.net", "a")),
        ("dbfs:/jobs/out", ("dbfs", "/jobs/out")),
        ("hdfs://node:8020/jobs/out", ("hdfs://node:8020", "/jobs/out")),
    ],
)
def test_datasets_are_named_by_where_they_lie(place: str, named: tuple[str, str]) -> None:
    assert place_name(place) == named


def test_a_column_called_location_is_not_where_a_table_lies() -> None:
    rows = [
        ("id", "string", None),
        ("Location", "string", None),
        ("", "", ""),
        ("# Detailed Table Information", "", ""),
    ]
    rows += [("Name", "spark_catalog.db.t", ""), ("Location", "s3a://bucket/t", "")]
    catalog = SimpleNamespace(tableExists=lambda name: True)
    spark: Any = SimpleNamespace(catalog=catalog, sql=lambda text: SimpleNamespace(collect=lambda: rows))
    table = OutputConfig(table="db.t")
    assert dataset_name(spark, table) == ("s3://bucket", "t")
