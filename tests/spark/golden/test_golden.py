"""Keys, prompts, plans and answers are what they were: against values that an earlier version wrote down.

`DOLLY_BATCH_WRITE_GOLDEN=1 pytest tests/spark/golden` writes new ones. Do that only when answers are meant to change.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession

from dolly_batch import Options, run_job
from dolly_batch.prompt import PromptEncoder
from dolly_batch.tiny import MODEL_FOLDER
from tests.spark.desk import load_job_text
from tests.spark.golden.jobs import JOBS, QUESTIONS, document, write_rows

FOLDER = Path(__file__).parent
WRITE = bool(os.environ.get("DOLLY_BATCH_WRITE_GOLDEN"))
# What differs from run to run, or from machine to machine.
VOLATILE = {"created_at", "p_created_at"}
MANIFEST_VOLATILE = {"created_at", "model_folder", "model_revision"}
# Keys that manifests have got since: all others are as they were.
ADDED = {"retried"}


@dataclass(frozen=True)
class Ran:
    """What a run left: its plan, the rows it asked, and the output."""

    manifest: dict[str, Any]
    todo: list[dict[str, Any]]
    schema: dict[str, Any]
    rows: list[dict[str, Any]]


def run(spark: SparkSession, folder: Path, stage_dir: Path, name: str) -> Ran:
    job = JOBS[name]
    write_rows(job.rows, folder / "input.jsonl")
    told = document(name, folder, stage_dir)
    if job.before:
        run_job(load_job_text(folder, {**told, **job.before}))
    report = run_job(load_job_text(folder, told), Options(retry=job.retry))
    plan = folder / "work" / str(report.plan_id)
    text = (plan / "manifest.json").read_text().replace(str(folder), "FOLDER")
    output = told["output"]
    table = spark.table(output["table"]) if "table" in output else spark.read.parquet(output["path"])
    todo = spark.read.parquet(str(plan / "snapshot" / "todo")).drop("wave", "shard")
    return Ran(
        {key: value for key, value in json.loads(text).items() if key not in MANIFEST_VOLATILE},
        _sorted(todo.collect()),
        json.loads(table.schema.json()),
        _sorted(table.drop(*VOLATILE).collect()),
    )


def _sorted(rows: list[Any]) -> list[dict[str, Any]]:
    told = [json.loads(json.dumps(row.asDict(recursive=True), default=str)) for row in rows]
    return sorted(told, key=lambda row: json.dumps({k: v for k, v in row.items() if not isinstance(v, float)}))


def prompt_ids(rows: list[dict[str, Any]]) -> list[list[int]]:
    """The prompts of rows that are asked as they were planned, by their own texts."""
    encoder = PromptEncoder.from_folder(MODEL_FOLDER)
    return [encoder.encode(row["instruction"], row["context"])[:400] for row in rows]


def close(found: Any, expected: Any) -> bool:
    """Equal, but for the last digits of numbers: another CPU adds in another order."""
    if isinstance(expected, float):
        return found == pytest.approx(expected, rel=1e-3, abs=1e-4)
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and found.keys() == expected.keys()
            and all(close(found[k], expected[k]) for k in found)
        )
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(close, found, expected))
    return bool(found == expected)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long if name in ("retry", "template") else ()) for name in JOBS]
)
def test_a_job_is_planned_and_answered_as_ever(
    name: str, session: tuple[SparkSession, str | None], stage_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    spark, without_delta = session
    if without_delta and JOBS[name].sections["output"].get("format") == "delta":
        pytest.skip(without_delta)
    ran = run(spark, tmp_path, stage_dir, name)
    found = {
        "manifest": ran.manifest,
        "todo": ran.todo,
        "prompt_ids": prompt_ids(ran.todo),
        "schema": ran.schema,
        "rows": ran.rows,
    }
    path = FOLDER / f"{name}.json"
    if WRITE:
        path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    expected = json.loads(path.read_text(encoding="utf-8"))
    for key in ADDED - expected["manifest"].keys():
        ran.manifest.pop(key, None)
    if "FOLDER" in ran.manifest["destination"]:
        # A plan's id is made from the output's path, among others; that of a catalog table is the same everywhere.
        for side in (found, expected):
            _hide_plan_ids(side)
    for part in ("manifest", "todo", "prompt_ids", "schema", "rows"):
        assert close(found[part], expected[part]), f"{part}: found {found[part]}, expected {expected[part]}"


def _hide_plan_ids(side: dict[str, Any]) -> None:
    side["manifest"]["plan_id"] = ""
    for row in side["rows"]:
        row["plan_id"] = ""


def test_responses_of_labels_are_encoded_as_ever() -> None:
    encoder = PromptEncoder.from_folder(MODEL_FOLDER)
    found = encoder.encode_responses(["positive", " blank first", "", "\u00e9\U0001f600"])
    path = FOLDER / "labels.json"
    if WRITE:
        path.write_text(json.dumps(found) + "\n", encoding="utf-8")
    assert found == json.loads(path.read_text(encoding="utf-8"))


def copy_of(name: str, tmp_path: Path, *, with_work: bool) -> Path:
    """A copy of what an earlier version wrote; an open plan names absolute paths, which become those of the copy."""
    shutil.copytree(FOLDER / "written" / name, tmp_path / name)
    if with_work:
        for path in (tmp_path / name / "work").glob("*/manifest.json"):
            path.write_text(path.read_text().replace("FOLDER", str(tmp_path / name)))
    return tmp_path / name


def written_document(folder: Path, stage_dir: Path, format: str) -> dict[str, Any]:
    told = document("generate", folder, stage_dir)
    told["output"] = {**told["output"], "format": format, "path": str(folder / "out")}
    return {**told, "plan": {**told["plan"], "max_shard_rows": 2, "shards_per_slot": 1, "slots": 1}}


@pytest.mark.parametrize("format", ["parquet", "delta"])
def test_a_table_that_an_earlier_version_wrote_is_taken_up(
    format: str, session: tuple[SparkSession, str | None], stage_dir: Path, tmp_path: Path
) -> None:
    if session[1] and format == "delta":
        pytest.skip(session[1])
    folder = FOLDER / "written" / format if WRITE else copy_of(format, tmp_path, with_work=False)
    if WRITE:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_rows(QUESTIONS, folder / "input.jsonl")
        run_job(load_job_text(folder, written_document(folder, stage_dir, format)))
        shutil.rmtree(folder / "work")
        for path in folder.rglob("*"):
            if path.suffix == ".crc" or path.name in ("job.yaml", "_SUCCESS"):
                path.unlink()
        return
    report = run_job(load_job_text(folder, written_document(folder, stage_dir, format)))
    assert (report.outcome, report.num_held_rows, report.num_published_rows) == ("nothing_to_do", len(QUESTIONS), 0)
    write_rows([*QUESTIONS, {"id": "new", "instruction": "What is four plus three?"}], folder / "input.jsonl")
    report = run_job(load_job_text(folder, written_document(folder, stage_dir, format)))
    assert (report.outcome, report.num_published_rows, report.num_answered_by_model) == ("complete", 1, 1)


def test_a_plan_that_an_earlier_version_left_open_is_finished(
    spark: SparkSession, stage_dir: Path, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    if WRITE:
        _write_open_plan(spark, FOLDER / "written" / "open", stage_dir)
    folder = copy_of("open", tmp_path, with_work=True)
    job = load_job_text(folder, written_document(folder, stage_dir, "parquet"))
    # Executors load the model from where the plan says that it was staged.
    shutil.copytree(
        MODEL_FOLDER, json.loads(next((folder / "work").glob("p*/manifest.json")).read_text())["model_folder"]
    )
    report = run_job(job)
    assert (report.outcome, report.num_resumed_waves, report.num_waves) == ("complete", 1, 2)
    found = {row.id: row.response for row in spark.read.parquet(str(folder / "out")).collect()}
    expected = {row["id"]: row["response"] for row in json.loads((FOLDER / "generate.json").read_text())["rows"]}
    assert found == expected


def _write_open_plan(spark: SparkSession, folder: Path, stage_dir: Path) -> None:
    from dataclasses import replace

    from dolly_batch.spark.files import files_for
    from dolly_batch.spark.generate.waves import Generation
    from dolly_batch.spark.model import resolve_model
    from dolly_batch.spark.plan.planner import make_plan
    from dolly_batch.spark.tables.input import open_input
    from dolly_batch.spark.tables.output import open_output

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_rows(QUESTIONS, folder / "input.jsonl")
    job = load_job_text(folder, written_document(folder, stage_dir, "parquet"))
    files, work = files_for(spark, job.work_dir)
    source = open_input(spark, job)
    target, model = open_output(spark, job, source), resolve_model(spark, job, work, print)
    planned = make_plan(Options(), source, target, model, files, work)
    assert planned.folder is not None
    plan_folder, plan = planned.folder, planned.plan
    assert len(plan.waves) == 2
    first = replace(plan, waves=plan.waves[:1])
    Generation(spark, job, plan_folder, first, model, lambda: None).run(lambda: None)
    shutil.rmtree(folder / "work" / "models")
    (folder / "job.yaml").unlink()
    shutil.rmtree(Path(plan_folder.path) / "progress", ignore_errors=True)
    for path in folder.rglob("*"):
        if path.suffix == ".crc" or path.name == "_SUCCESS" or path.name.endswith(".lock"):
            path.unlink()
    manifest = Path(plan_folder.path) / "manifest.json"
    manifest.write_text(manifest.read_text().replace(str(folder), "FOLDER"))
