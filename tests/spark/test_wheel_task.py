"""The bundle's job as Databricks runs it: in its session, the wheel's entry point called as a function."""

import json
import sys
from importlib import metadata

import pytest

from tests.spark.desk import Desk
from tests.test_bundle import PROJECT, job_of_bundle, parameters_with, read_scripts

SAMPLE = PROJECT / "dolly_batch" / "samples" / "instructions.jsonl"


def called_as_by_databricks(parameters: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """How a task ends: it succeeds where the call returns, whatever it returns; each SystemExit is a failure."""
    (task,) = job_of_bundle()["tasks"]
    wheel = task["python_wheel_task"]
    entry = metadata.EntryPoint(wheel["entry_point"], read_scripts()[wheel["entry_point"]], "console_scripts")
    monkeypatch.setattr(sys, "argv", ["task", *parameters])
    monkeypatch.setenv("DATABRICKS_RUNTIME_VERSION", "17.3")
    try:
        entry.load()()
    except SystemExit as end:
        return f"failed with {end.code}"
    return "succeeded"


@pytest.mark.parametrize("engine", ["echo", pytest.param("auto", marks=pytest.mark.chaos)])
def test_a_success_returns_a_failure_does_not_and_the_table_is_the_demos(
    delta_desk: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], engine: str
) -> None:
    spark = delta_desk.spark
    spark.read.json(str(SAMPLE)).write.format("delta").saveAsTable(f"tickets_{engine}")
    values = {
        "input_table": f"tickets_{engine}",
        "output_table": f"answers_{engine}",
        "model": "tiny",
        "work_dir": str(delta_desk.folder / "work"),
    }
    missing = parameters_with(values | {"input_table": "no_such_table"})
    assert called_as_by_databricks(missing, monkeypatch) == "failed with 4"
    chosen = ["--set", f"engine.kind={engine}", "--set", f"model.stage_dir={delta_desk.document['model']['stage_dir']}"]
    assert called_as_by_databricks([*parameters_with(values), *chosen], monkeypatch) == "succeeded"
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    asked = [json.loads(line)["id"] for line in SAMPLE.open(encoding="utf-8")]
    rows = spark.table(f"answers_{engine}").collect()
    assert sorted(row["id"] for row in rows) == sorted(asked)
    assert report["num_published_rows"] == len(asked)
    assert {row["status"] for row in rows} >= {"ok", "null_instruction", "too_long"}
