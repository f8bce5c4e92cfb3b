"""The job files of conf/ run as they are, on the small model: one row out for each row in. demo.yaml: test_demo.py."""

from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from dolly_batch.config.job import load_job
from dolly_batch.spark.run import run_job
from tests.conftest import PROJECT


@pytest.mark.parametrize(
    "name", [pytest.param("demo-delta", marks=pytest.mark.long), "classify", "summarize", "extract"]
)
def test_a_job_file_of_conf_answers_its_sample_table(
    name: str,
    session: tuple[SparkSession, str | None],
    stage_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("torch")
    spark, without_delta = session
    if without_delta and name == "demo-delta":
        pytest.skip(without_delta)
    monkeypatch.chdir(PROJECT)  # the sample tables' paths are relative
    places: dict[str, object] = {
        "output.path": tmp_path / "out",
        "work_dir": tmp_path / "work",
        "model.stage_dir": stage_dir,
    }
    places |= {"model.path": "tiny", "engine.processes": 1}
    if name.startswith("demo"):  # the questions of `make demo MODEL=tiny`
        places["input.path"] = PROJECT / "dolly_batch" / "samples" / "instructions.jsonl"
    overrides = [f"{key}={value}" for key, value in places.items()]
    job = load_job(PROJECT / "conf" / f"{name}.yaml", overrides)
    report = run_job(job)
    num_rows = len(Path(str(job.input.path)).read_text(encoding="utf-8").splitlines())
    assert (report.outcome, report.exit_code, report.num_published_rows) == ("complete", 0, num_rows)
    table = spark.read.format(job.output.format).load(str(job.output.path))
    assert table.count() == num_rows
    share = table.where("status = 'ok'").count() / num_rows
    assert share > 0.8
