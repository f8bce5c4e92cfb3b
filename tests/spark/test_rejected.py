"""Answers that are not wanted: `checks` count them, and `output.rejected` gets a copy of the rows with errors."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from dolly_batch.console import summary_lines
from dolly_batch.errors import ConfigError, OutputError
from dolly_batch.spark import run
from tests.spark.desk import Desk, questions

REPEATED = [{"id": "twice", "instruction": "Say A."}, {"id": "twice", "instruction": "Say B."}]
CHECKS = {"short": "length(response) < 1000", "no-7": "response not like '%7%'"}


def rejected(spark: SparkSession, folder: Path, format: str) -> list[Any]:
    return spark.read.format(format).load(str(folder / "rejected")).collect()


def job_of(desk: Desk, format: str) -> dict[str, Any]:
    return {
        "input": {"on_bad_id": "status"},
        "output": {"rejected": {"path": str(desk.folder / "rejected"), "format": format}},
        "limits": {"max_error_share": 0.5},
        "checks": CHECKS,
    }


@pytest.mark.parametrize(
    "format", [pytest.param("parquet", marks=pytest.mark.long), pytest.param("delta", marks=pytest.mark.chaos)]
)
def test_counts_add_up_though_a_start_dies_after_them(
    request: pytest.FixtureRequest, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk: Desk = request.getfixturevalue("delta_desk" if format == "delta" else "desk")
    desk.put([*questions(20), *REPEATED])
    job = job_of(desk, format)
    count = run.answer_facts

    def die(*arguments: Any) -> dict[str, object]:
        count(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "answer_facts", die)
    with pytest.raises(KeyboardInterrupt):
        desk.run(**job)
    monkeypatch.undo()
    report = desk.run(**job)
    assert (report.outcome, report.exit_code) == ("complete", 0)
    assert report.by_status == {"ok": 20, "duplicate_id": 2}
    assert report.num_rejected_rows == report.by_status["duplicate_id"]
    rows = desk.rows(format)
    assert Counter(row["status"] for row in rows) == report.by_status  # the output has them too
    there = rejected(desk.spark, desk.folder, format)
    assert [(row.id, row.status, row.plan_id) for row in there] == [("twice", "duplicate_id", report.plan_id)] * 2
    assert set(there[0].asDict()) == set(rows[0])
    answers = [row["response"] for row in rows if row["status"] == "ok"]
    assert report.num_checked_rows == len(answers) == 20
    assert report.checks == {"short": 0, "no-7": sum("7" in answer for answer in answers)}
    assert report.checks["no-7"] > 0
    assert f"check no-7: {report.checks['no-7']} of 20 answers fail" in "\n".join(summary_lines(report))
    (written,) = (json.loads(path.read_text()) for path in (desk.folder / "work").rglob("report.json"))
    assert (written["checks"], written["num_rejected_rows"]) == (report.checks, 2)

    desk.put([*questions(21), *REPEATED, {**REPEATED[0], "id": "again"}, {**REPEATED[1], "id": "again"}])
    assert desk.run(**job).num_rejected_rows == 2  # those that were there are not added again
    assert Counter(row.id for row in rejected(desk.spark, desk.folder, format)) == {"twice": 2, "again": 2}


def test_a_check_that_too_many_fail_or_that_a_value_stops_is_exit_3_and_named(desk: Desk) -> None:
    desk.put([*questions(19), {"id": "bracket", "instruction": "(Say 7."}])
    checks = {
        "by-chance": "rand() >= 0",
        "pattern": "response rlike substr(response, 1, 1)",
        "sevens": "response like '%7%'",
        "number": "cast(response as int) > 0",
        "known": "response is not null",
    }
    report = desk.run(checks=checks)
    assert (report.outcome, report.exit_code) == ("complete", 3)
    assert report.checks["sevens"] > 10
    assert report.checks["known"] == 0
    assert report.checks["by-chance"] == 0
    assert set(report.check_faults) == {"number", "pattern"}
    assert "fail the check sevens, more than limits.max_error_share = 5.0% (exit 3)" in report.message
    assert "the check number could not be counted (exit 3): [CAST_INVALID_INPUT]" in report.message
    assert "Say the number" not in report.to_json()
    assert len(desk.rows()) == 20
    assert desk.run(checks=checks).outcome == "nothing_to_do"


def test_a_resumed_plan_refuses_a_rejected_table_in_its_output(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who adds it after a start that has stopped: the output's rows must not make way for it."""
    desk.put([*questions(3), *REPEATED])
    job = {"input": {"on_bad_id": "status"}, "limits": {"max_error_share": 1.0}}

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "publish", stop)
    with pytest.raises(KeyboardInterrupt):
        desk.run(**job, output={"mode": "append"})
    monkeypatch.undo()
    same = {"mode": "append", "rejected": {"path": str(desk.out), "format": "parquet"}}
    assert "lie in one another" in str(desk.refused(**job, output=same))
    beside = {"mode": "append", "rejected": {"path": str(desk.folder / "rejected"), "format": "parquet"}}
    assert desk.run(**job, output=beside).num_rejected_rows == 2
    assert (len(desk.rows()), len(rejected(desk.spark, desk.folder, "parquet"))) == (5, 2)


def test_refused_before_any_work(desk: Desk) -> None:
    desk.put(questions(2))
    for predicate, found in (
        ("length(response)", "DATATYPE_MISMATCH"),
        ("length(respons) < 5", "UNRESOLVED_COLUMN"),
        ("length(response <", "PARSE_SYNTAX_ERROR"),
        ("count(*) > 5", "INVALID_WHERE_CONDITION"),
        ("response rlike '('", "INVALID_PARAMETER_VALUE"),
        ("size(split(response, '[')) > 0", "IllegalArgumentException"),
        ("date_format(created_at, 'QQQQQQ') > ''", "INVALID_DATETIME_PATTERN"),
    ):
        error = desk.refused(checks={"odd": predicate})
        assert isinstance(error, ConfigError)
        assert "checks.odd: " in str(error)
        assert found in str(error)
    error = desk.refused(output={"rejected": {"path": str(desk.out / "rejected"), "format": "parquet"}})
    assert isinstance(error, OutputError)
    assert "lie in one another" in str(error)
    other = desk.folder / "other"
    desk.spark.range(3).write.parquet(str(other))
    error = desk.refused(output={"rejected": {"path": str(other), "format": "parquet"}})
    assert "output.rejected" in str(error)
    assert "another schema" in str(error)
    error = desk.refused(output={"rejected": {"path": str(desk.folder / "input.jsonl"), "format": "parquet"}})
    assert isinstance(error, OutputError)
    assert not desk.out.exists()
