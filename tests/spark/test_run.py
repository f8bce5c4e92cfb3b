"""A job from its input to its output: rows in = rows out, and a second run writes nothing."""

import json
from collections import Counter
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame, SparkSession

from dolly_batch import Options, Report, Stopped, run_job
from dolly_batch.config.limits import LimitsConfig
from dolly_batch.errors import ConfigError
from dolly_batch.spark.generate.limits import Budget, ErrorLimit
from tests.spark.desk import Desk, questions

OURS = [
    "response", "status", "error", "finish_reason", "num_prompt_tokens", "num_completion_tokens", "input_truncated",
    "num_dropped_tokens",
    "request_key", "plan_id", "attempt", "model", "model_revision", "created_at",
]  # fmt: skip


def files_of(folder: Path) -> dict[str, float]:
    return {str(p): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def test_every_row_is_answered_once_and_a_second_run_writes_nothing(desk: Desk) -> None:
    desk.put(questions(50))
    report = desk.run(plan={"max_shard_rows": 7, "shards_per_slot": 1, "slots": 2})
    assert (report.outcome, report.exit_code, report.num_waves > 2) == ("complete", 0, True)
    rows = desk.rows()
    assert sorted(row["id"] for row in rows) == [row["id"] for row in questions(50)]
    assert all(row["response"].startswith(f"Say the number {int(row['id'][1:])}.") for row in rows)
    assert {row["status"] for row in rows} == {"ok"}
    before = files_of(desk.out)
    again = desk.run()
    assert (again.outcome, again.exit_code) == ("nothing_to_do", 0)
    assert files_of(desk.out) == before


def test_a_small_run_has_few_spark_jobs(desk: Desk) -> None:
    """Each costs a tenth of a second and more, which is what a small run takes."""
    scheduler = desk.spark.sparkContext._jsc.sc().dagScheduler()
    desk.put(questions(30))
    before = scheduler.numTotalJobs()
    desk.run(output={"mode": "append"})
    assert 0 < scheduler.numTotalJobs() - before <= 22


def test_skewed_files_make_even_shards(desk: Desk) -> None:
    """One of 40 files has nearly all rows, most are empty."""
    source = desk.folder / "skewed"
    source.mkdir()
    for i in range(40):
        rows = questions(600) if i == 7 else questions(1, start=1000 + i) if i % 10 == 0 else []
        desk.put(rows, f"skewed/{i}.jsonl")
    desk.run(input={"path": str(source)}, plan={"max_shard_rows": 80, "slots": 2}, work={"keep_days": 1.0})
    (plan,) = (desk.folder / "work").glob("p*")
    todo = desk.spark.read.parquet(str(plan / "snapshot" / "todo"))
    sizes = sorted(row["count"] for row in todo.groupBy("wave", "shard").count().collect())
    assert sum(sizes) == len(desk.rows()) == 604
    assert sizes[-1] <= 2 * sizes[len(sizes) // 2]
    loads = desk.spark.read.parquet(str(plan / "staging")).select("engine_id", "engine_load").distinct()
    assert loads.count() <= 2  # slots


def test_columns_stand_in_the_order_of_the_contract(desk: Desk) -> None:
    desk.put([{"id": "a", "instruction": "x", "category": "c"}])
    desk.run(output={"keep": ["category"]}, input={"context": None})
    assert desk.spark.read.parquet(str(desk.out)).columns == ["id", "category", *OURS]
    row = desk.rows()[0]
    assert row["created_at"].tzinfo is None
    assert abs((datetime.now(UTC).replace(tzinfo=None) - row["created_at"]).total_seconds()) < 300
    assert (row["model"], row["attempt"], row["input_truncated"]) == ("tiny", 1, False)


BAD = [
    ({"id": "1", "instruction": None}, "null_instruction"),
    ({"id": "2", "instruction": ""}, "empty_instruction"),
    ({"id": "3", "instruction": " \t\n\u3000"}, "empty_instruction"),
    ({"id": "4", "instruction": "\u200b\u200d\ufeff"}, "empty_instruction"),
    ({"id": "5", "instruction": "word " * 3000}, "too_long"),
    ({"id": "6", "instruction": "ok {instruction} %s \\ {}"}, "ok"),
    ({"id": "7", "instruction": "\U0001f468‍\U0001f469‍\U0001f467 עברית \u202e"}, "ok"),
]


def test_rows_that_cannot_run_get_their_status_and_no_model(desk: Desk) -> None:
    desk.put([row for row, _ in BAD])
    report = desk.run(input={"context": None}, output={"keep": ["instruction"]}, limits={"max_error_share": 1.0})
    rows = {row["id"]: row for row in desk.rows()}
    assert {id: row["status"] for id, row in rows.items()} == {row["id"]: status for row, status in BAD}
    for row, _ in BAD:
        assert rows[str(row["id"])]["instruction"] == row["instruction"]
    assert "2048" in rows["5"]["error"]
    assert rows["5"]["num_prompt_tokens"] > 2048 - 256
    assert report.by_status == Counter(status for _, status in BAD)
    assert all(rows[id]["response"] is None for id in "12345")


def test_a_smaller_window_is_what_rows_have_to_fit_into(desk: Desk) -> None:
    desk.put([{"id": "1", "instruction": "word " * 30}, {"id": "2", "instruction": "word " * 3}])
    model = {"max_positions": 64}
    desk.run(model=model, generation={"max_new_tokens": 16}, input={"context": None}, limits={"max_error_share": 1.0})
    rows = {row["id"]: row for row in desk.rows()}
    assert {id: row["status"] for id, row in rows.items()} == {"1": "too_long", "2": "ok"}
    assert "exceeds the model's 64 positions" in rows["1"]["error"]
    with pytest.raises(ConfigError, match=r"model\.max_positions is 4096, and the model has 2048 positions"):
        desk.run(model={"max_positions": 4096}, input={"context": None})


def test_an_empty_table_gives_an_empty_table_and_no_model_load(desk: Desk) -> None:
    desk.spark.createDataFrame([], "id string, instruction string, n int").write.parquet(str(desk.folder / "empty"))
    report = desk.run(
        input={"path": str(desk.folder / "empty"), "format": "parquet", "context": None}, output={"keep": ["n"]}
    )
    assert (report.exit_code, report.model_loads) == (0, 0)
    table = desk.spark.read.parquet(str(desk.out))
    assert (table.columns, table.count()) == (["id", "n", *OURS], 0)


def test_invalid_utf8_is_one_rows_fault(desk: Desk) -> None:
    df = desk.spark.range(200).selectExpr(
        "cast(id as string) id",
        "case when id = 77 then cast(x'ff41' as string) else concat('say ', id) end instruction",
        "case when id = 78 then cast(x'c3' as string) end note",
    )
    df.write.parquet(str(desk.folder / "in"))
    desk.run(input={"path": str(desk.folder / "in"), "format": "parquet", "context": None}, output={"keep": ["note"]})
    counts = Counter(row["status"] for row in desk.spark.read.parquet(str(desk.out)).select("id", "status").collect())
    assert counts == {"ok": 199, "bad_encoding": 1}


def test_a_cell_of_ten_megabytes_is_set_aside(desk: Desk) -> None:
    desk.put([*questions(3), {"id": "huge", "instruction": "x" * 10_000_000}])
    desk.run(limits={"max_error_share": 1.0})
    huge = next(row for row in desk.rows() if row["id"] == "huge")
    assert (huge["status"], huge["num_prompt_tokens"]) == ("too_long", None)


def test_limit_takes_the_first_rows_by_key_and_the_next_run_takes_the_rest(desk: Desk) -> None:
    desk.put(questions(20))
    assert desk.run(Options(limit=5)).num_published_rows == 5
    assert sorted(row["id"] for row in desk.rows()) == [f"r{i:05d}" for i in range(5)]
    report = desk.run()
    assert (report.num_answered_by_model, report.num_held_rows) == (15, 5)
    assert sorted(row["id"] for row in desk.rows()) == [f"r{i:05d}" for i in range(20)]


def test_overwrite_pays_only_for_what_changed(desk: Desk) -> None:
    desk.put(questions(10))
    desk.run()
    changed = [*questions(8), {"id": "r00008", "instruction": "Another question."}, *questions(1, start=40)]
    desk.put(changed)
    report = desk.run()
    assert (report.num_answered_by_model, report.num_held_rows) == (2, 8)
    rows = {row["id"]: row for row in desk.rows()}
    assert sorted(rows) == sorted(row["id"] for row in changed)
    assert rows["r00008"]["response"].startswith("Another question.")
    assert len({row["plan_id"] for row in rows.values()}) == 2


def test_overwrite_takes_over_changed_kept_columns_without_the_model(desk: Desk) -> None:
    desk.put([{**row, "tag": "old"} for row in questions(4)])
    desk.run(output={"keep": ["tag"]})
    desk.put([{**row, "tag": "new"} for row in questions(4)])
    report = desk.run(output={"keep": ["tag"]})
    assert (report.outcome, report.num_answered_by_model) == ("complete", 0)
    assert {row["tag"] for row in desk.rows()} == {"new"}


def test_parquet_append_adds_a_folder_and_never_a_row_twice(desk: Desk) -> None:
    desk.put(questions(6))
    desk.run(output={"mode": "append"})
    desk.put(questions(9))
    second = desk.run(output={"mode": "append"})
    assert second.num_published_rows == 3
    assert desk.run(output={"mode": "append"}).outcome == "nothing_to_do"
    assert Counter(row["id"] for row in desk.rows()) == Counter(row["id"] for row in questions(9))
    assert sum(name.name.startswith("plan_id=p") for name in desk.out.iterdir()) == 2


def test_snapshot_and_staging_go_when_the_run_is_complete_and_the_report_stays(desk: Desk) -> None:
    desk.put(questions(3))
    report = desk.run()
    folder = desk.folder / "work" / str(report.plan_id)
    assert sorted(path.name for path in folder.iterdir()) == [
        "complete.json", "manifest.json", "progress.json", "published.json", "report.json", "swapping.json",
    ]  # fmt: skip
    assert json.loads((folder / "report.json").read_text())["by_status"] == {"ok": 3}


def test_the_model_is_loaded_once_for_all_waves(desk: Desk) -> None:
    del desk.document["model"]["stage_dir"]  # an engine host of its own
    desk.put(questions(40))
    report = desk.run(plan={"max_shard_rows": 4, "shards_per_slot": 1, "slots": 1})
    assert report.num_waves >= 8
    assert report.model_loads == 1


@pytest.mark.parametrize("sample", [False, True])
def test_rows_that_ask_the_same_each_get_their_own_row(desk: Desk, sample: bool) -> None:
    rows = [{"id": f"{i}", "instruction": "The same for all."} for i in range(30)]
    desk.put(rows)
    desk.run(generation={"do_sample": sample}, input={"context": None}, plan={"max_shard_rows": 10})
    found = desk.rows()
    assert sorted(row["id"] for row in found) == sorted(row["id"] for row in rows)
    assert len({row["request_key"] for row in found}) == 1
    assert {row["response"] for row in found} == {"The same for all."}


def test_answers_do_not_reach_the_plan_of_another_job(desk: Desk) -> None:
    desk.put(questions(3))
    desk.run(name="one")
    report = desk.run(name="two", output={"path": str(desk.folder / "out2")})
    assert report.num_answered_by_model == 3


def test_a_spent_budget_stops_the_run_and_a_larger_one_lets_it_go_on(desk: Desk) -> None:
    desk.put(questions(12))
    plan = {"max_shard_rows": 2, "shards_per_slot": 1, "slots": 2, "waves_in_flight": 1}
    desk.job(limits={"max_gpu_hours": 1e-9, "price_per_gpu_hour": 1e6}, plan=plan)
    reached = Report("job")
    with pytest.raises(Stopped, match=r"limits\.max_gpu_hours = 1e-09") as stopped:
        run_job(desk.folder / "job.yaml", report=reached)
    assert stopped.value.exit_code == 5
    assert (reached.num_waves > 2, "generate" in reached.seconds) == (True, True)
    assert reached.gpu_hours > 0
    assert reached.cost == pytest.approx(1e6 * reached.gpu_hours, abs=1e-3)
    for changed in ({"prefix": "x_"}, {"keep": ["instruction"]}, {"partition_by": ["id"]}):
        assert "has an open plan" in str(desk.refused(plan=plan, output=changed))
    report = desk.run(limits={"max_gpu_hours": 1.0}, plan=plan)
    assert (report.outcome, report.num_resumed_waves > 0) == ("complete", True)
    assert sorted(row["id"] for row in desk.rows()) == [row["id"] for row in questions(12)]


def test_an_engines_time_counts_once_however_many_tasks_share_it(spark: SparkSession) -> None:
    waves = [
        [("a", 3600.0, 9000.0), ("b", 0.0, 3600.0), ("a", None, None)],
        [("a", 0.0, 7200.0), ("a", 0.0, 3600.0), ("a", 10800.0, 12600.0)],
    ]
    budget = Budget(LimitsConfig(max_gpu_hours=3.9))
    for tasks, hours in zip(waves, (2.5, 4.0), strict=True):
        rows = spark.createDataFrame(tasks, "engine_id string, began_s double, ended_s double")
        with nullcontext() if hours < 3.9 else pytest.raises(Stopped, match="busy for 4 hours"):
            budget.add(rows)
        assert budget.hours == hours


def test_a_run_whose_rows_fail_is_stopped_at_the_end_of_a_wave(spark: SparkSession) -> None:
    def answers(**counts: int) -> DataFrame:
        rows = [(status, f"why {status}") for status, count in counts.items() for _ in range(count)]
        return spark.createDataFrame(rows, "status string, error string")

    limit = ErrorLimit(0.05)
    limit.add(answers(ok=10, model_error=400))  # too few to judge
    with pytest.raises(Stopped, match=r"460 of the 980 .*0\.05; 60 of the last ones are model_error.*why model_error"):
        limit.add(answers(ok=510, model_error=60))
    calm = ErrorLimit(0.05)
    calm.add(answers(ok=950, invalid_output=50))
    calm.add(answers(ok=1, truncated=600))


def test_a_wave_of_errors_ends_the_run_and_more_errors_allowed_let_it_go_on(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dolly_batch.spark.generate.limits.MIN_JUDGED_ROWS", 2)
    desk.put([{"id": f"{i}", "text": f"no object {i}"} for i in range(12)])
    job: dict[str, Any] = {
        "task": {"kind": "extract", "schema": "a INT"},
        "input": {"path": str(desk.folder / "input.jsonl"), "format": "json", "id": "id", "text": "text"},
        "plan": {"max_shard_rows": 2, "shards_per_slot": 1, "slots": 2, "waves_in_flight": 1},
    }
    desk.document["input"] = {}
    error = desk.refused(**job)
    assert isinstance(error, Stopped)
    assert "are invalid_output" in str(error)
    assert not desk.out.exists()
    report = desk.run(**job, limits={"max_error_share": 1.0})
    assert (report.outcome, report.num_resumed_waves > 0) == ("complete", True)
    assert report.by_status == {"invalid_output": 12}


def test_an_open_plan_that_cannot_be_read_is_named_and_can_be_closed(desk: Desk) -> None:
    desk.put(questions(2))
    manifest = desk.folder / "work" / "p1" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"format": 2, "name": "job"}))
    error = desk.refused()
    assert isinstance(error, Stopped)
    assert f"{manifest} cannot be read: it was made by another version" in str(error)
    assert "--abandon" in str(error)
    assert desk.run(Options(abandon=True)).outcome == "abandoned"
    assert desk.run().outcome == "complete"
