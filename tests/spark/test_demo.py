"""The demo: a real model answers the sample table, one row for each row, and what it reads in a text is right."""

import json
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from dolly_batch.config.job import load_job
from dolly_batch.spark.run import run_job
from tests.conftest import PROJECT
from tests.smollm2 import smollm2_folder

READ = {
    "q-001": "Lisbon",
    "q-009": "bakery",
    "q-011": "12.50",
    "q-013": "555-0142",
    "q-018": "French",
    "q-020": "RT-5821",
}
READ |= {"q-016": "sports", "q-022": '"city": "Paris"', "q-028": "arrived"}


def test_smollm2_answers_the_sample_table(
    session: tuple[SparkSession, str | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smollm2_folder()
    spark, _ = session
    monkeypatch.chdir(PROJECT)
    places = {"output.path": tmp_path / "out", "work_dir": tmp_path / "work", "engine.processes": 1}
    job = load_job(
        PROJECT / "conf" / "demo.yaml", [f"{key}={value}" for key, value in places.items()] + ["model.dtype=float32"]
    )
    report = run_job(job)
    asked = [json.loads(line) for line in Path(str(job.input.path)).read_text(encoding="utf-8").splitlines()]
    answers = {row["id"]: row for row in spark.read.parquet(str(tmp_path / "out")).collect()}
    assert (report.exit_code, len(asked), set(answers)) == (0, 40, {row["id"] for row in asked})
    skipped = {key: row["status"] for key, row in answers.items() if row["status"] not in ("ok", "truncated")}
    assert skipped == {
        "q-037": "null_instruction",
        "q-038": "empty_instruction",
        "q-039": "empty_instruction",
        "q-040": "too_long",
    }
    wrong = {key: answers[key]["response"] for key, word in READ.items() if word not in answers[key]["response"]}
    assert wrong == {}
    assert "Hacked" not in answers["q-035"]["response"]
