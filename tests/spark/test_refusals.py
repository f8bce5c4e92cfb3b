"""What is refused: by name, before any work, with the output as it was and no model loaded."""

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from dolly_batch import Options
from dolly_batch.config.tables import InputConfig
from dolly_batch.errors import ConfigError, InputError, ModelError, OutputError, Refused
from dolly_batch.spark.tables.columns import resolve_column
from dolly_batch.spark.tables.input import read_table
from tests.spark.desk import Desk, questions


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


CASES: dict[str, tuple[dict[str, Any], type[Refused], str]] = {
    "missing column": ({"input": {"instruction": "instructoin"}}, InputError, "did you mean `instruction`"),
    "missing context": ({"input": {"context": "contxt"}}, InputError, "input.context.*`contxt`.*`context`"),
    "missing id": ({"input": {"id": ["id", "no such"]}}, InputError, "input.id.*`no such`"),
    "missing kept": ({"output": {"keep": ["nope"]}}, InputError, "output.keep.*`nope`"),
    "integer instruction": ({"input": {"instruction": "number"}}, InputError, "`number` is int, and must be string"),
    "struct instruction": ({"input": {"instruction": "q"}}, InputError, "`q` is struct.*string"),
    "binary instruction": ({"input": {"instruction": "bytes"}}, InputError, "`bytes` is binary.*string"),
    "float id": ({"input": {"id": "real"}}, InputError, "`real` is double"),
    "collated id": ({"input": {"id": "folded"}}, InputError, "`folded` is string collate UTF8_LCASE"),
    "map id": ({"input": {"id": "pairs"}}, InputError, "`pairs` is map"),
    "colliding column": ({"output": {"keep": ["status"]}}, OutputError, "`status`.*output.prefix"),
    "bad where": ({"input": {"where": "nope > 3"}}, InputError, "input.where.*nope"),
    "no such input": ({"input": {"path": "no/such/folder"}}, InputError, "no/such/folder"),
    "no such table": ({"input": {"path": None, "format": None, "table": "nope.nope"}}, InputError, "nope"),
    "injected table": ({"input": {"path": None, "format": None, "table": "x; DROP TABLE y"}}, InputError, "x; DROP"),
    "partition column": ({"output": {"partition_by": ["when"]}}, OutputError, "output.partition_by.*`when`"),
    "no such model": ({"model": {"path": "./no/such/model"}}, ModelError, "no/such/model"),
    "another model": (
        {"model": {"sha256": "0" * 64}},
        ModelError,
        "model.sha256 is 0{64}, and this is model [0-9a-f]{64}",
    ),
    "int8 on the plain engine": (
        {"model": {"quantization": "int8"}, "engine": {"kind": "plain"}},
        ConfigError,
        "model.quantization is 'int8'.*plain",
    ),
    "remote work_dir": ({"work_dir": "/proc/nowhere"}, ConfigError, "work_dir"),
    "no room for a prompt": (
        {"generation": {"max_new_tokens": 2048}},
        ConfigError,
        "max_new_tokens: 2048 leaves no row any room: .* set it to [0-9]+ or less",
    ),
    "too many rows": ({"limits": {"max_rows": 3}}, Refused, "8 rows.*limits.max_rows = 3"),
}


@pytest.fixture(scope="module")
def odd_table(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of eight rows with columns of types that a job cannot use everywhere."""
    folder = tmp_path_factory.mktemp("odd") / "in"
    spark.range(8).selectExpr(
        "cast(id as string) id", "concat('say ', id) instruction", "cast(null as string) context",
        "cast(id as int) number",
        "struct('a' as text) q", "cast('x' as binary) bytes", "cast(id as double) real", "'s' status",
        "cast(id as string) collate UTF8_LCASE folded", "map('a', id) pairs",
    ).write.parquet(str(folder))  # fmt: skip
    return folder


@pytest.mark.parametrize("case", CASES)
def test_refused_by_name_with_the_output_untouched(desk: Desk, odd_table: Path, case: str) -> None:
    sections, kind, message = CASES[case]
    before = contents(odd_table)
    document = {"input": {"path": str(odd_table), "format": "parquet"}}
    for key, value in sections.items():
        document[key] = {**document.get(key, {}), **value} if isinstance(value, dict) else value
    error = desk.refused(**document)
    assert isinstance(error, kind)
    assert error.exit_code == 4
    assert re.search(message, str(error), re.DOTALL), str(error)
    assert not desk.out.exists()
    assert contents(odd_table) == before
    assert not list((desk.folder / "work").glob("p*"))


def test_columns_that_differ_by_case_are_refused_before_any_work(desk: Desk) -> None:
    desk.put([{"id": "1", "instruction": "x", "Tag": "a", "tag": "b"}])
    desk.spark.conf.set("spark.sql.caseSensitive", "true")
    try:
        error = desk.refused(output={"keep": ["tag"]}, input={"context": None})
    finally:
        desk.spark.conf.unset("spark.sql.caseSensitive")
    assert "`Tag`, `tag`" in str(error) or "`tag`, `Tag`" in str(error)


def test_a_prefix_lets_colliding_columns_pass(desk: Desk) -> None:
    desk.put([{**row, "status": "old", "response": "theirs"} for row in questions(3)])
    for _ in range(2):
        report = desk.run(output={"keep": ["status", "response"], "prefix": "dolly_"})
    assert report.outcome == "nothing_to_do"
    row = desk.rows()[0]
    assert (row["status"], row["response"], row["dolly_status"]) == ("old", "theirs", "ok")


def test_nested_and_literally_dotted_columns_can_both_be_chosen(desk: Desk) -> None:
    df = desk.spark.range(2).selectExpr(
        "id", "struct(concat('nested ', id) as text) q", "concat('dotted ', id) `q.text`"
    )
    df.write.parquet(str(desk.folder / "in"))
    read = {"path": str(desk.folder / "in"), "format": "parquet", "context": None}
    desk.run(input={**read, "instruction": "q.text"})
    assert {row["response"] for row in desk.rows()} == {"dotted 0", "dotted 1"}
    df.drop("q.text").write.mode("overwrite").parquet(str(desk.folder / "in"))
    desk.run(input={**read, "instruction": "q.text"})
    assert {row["response"] for row in desk.rows()} == {"nested 0", "nested 1"}
    dots = desk.spark.sql("SELECT named_struct('x.y', 7) AS `a.b`")
    assert dots.select(resolve_column(dots, "`a.b`.`x.y`", "output.keep").column).schema.names == ["a.b.x.y"]


def test_inputs_that_spark_cannot_make_columns_of_are_named(spark: SparkSession, tmp_path: Path) -> None:
    places = {name: tmp_path / name for name in ("empty", "nanoseconds", "text")}
    for place in places.values():
        place.mkdir()
    (places["empty"] / "_SUCCESS").touch()
    (places["text"] / "part.parquet").write_text("no Parquet")
    pq.write_table(pa.table({"at": pa.array([1], pa.timestamp("ns"))}), places["nanoseconds"] / "part.parquet")
    said = {
        "empty": "empty cannot be read: it has no data: the folder is empty",
        "nanoseconds": "a column holds times in nanoseconds.*coerce_timestamps='us'.*{spark.sql.legacy",
        "text": "part.parquet: it is no Parquet file",
    }
    for name, place in places.items():
        with pytest.raises(InputError, match=said[name]):
            read_table(spark, InputConfig(path=str(place), format="parquet"), "input")
    with pytest.raises(InputError, match=said["empty"]):
        read_table(spark, InputConfig(path=str(places["empty"]), format="json"), "input")


@pytest.mark.parametrize("way", ["same", "slashes", "link", "inside", "parent"])
def test_the_output_is_never_the_input(desk: Desk, way: str) -> None:
    source = desk.folder / "in"
    desk.spark.range(3).selectExpr("cast(id as string) id", "'say' instruction").write.parquet(str(source))
    os.symlink(source, desk.folder / "link")
    output = {
        "same": source,
        "slashes": f"{desk.folder}//in/.",
        "link": desk.folder / "link",
        "inside": source / "answers",
        "parent": desk.folder,
    }[way]
    before = contents(source)
    error = desk.refused(
        input={"path": str(source), "format": "parquet", "context": None}, output={"path": str(output)}
    )
    assert isinstance(error, OutputError)
    assert contents(source) == before


def test_columns_of_any_name_can_stand_in_a_template(desk: Desk) -> None:
    desk.put([{"id": "1", "x:y": "a", "q!": "b", "a.b": "c", "f}": "d", "o`c": "e", "s p": "f"}])
    template = "{`x:y`} {`q!`} {a.b} {`a.b`} {`f}`} {`o``c`} {s p}"
    desk.run(task={"kind": "generate", "template": template}, input={"context": None})
    assert [row["response"] for row in desk.rows()] == ["a b c c d e f"]


def test_bad_ids_are_counted_and_shown_or_become_rows(desk: Desk) -> None:
    rows = [*questions(3), {"id": "r00001", "instruction": "again"}, {"id": None, "instruction": "no id"}]
    desk.put(rows)
    error = desk.refused()
    assert isinstance(error, InputError)
    assert "3 rows have a null or repeated id (1 null)" in str(error)
    assert "'r00001' (2 times)" in str(error)
    report = desk.run(input={"on_bad_id": "status"}, limits={"max_error_share": 1.0})
    assert report.by_status == {"ok": 2, "duplicate_id": 3}
    assert len(desk.rows()) == 5
    assert desk.run(input={"on_bad_id": "status"}).outcome == "nothing_to_do"


def test_an_id_that_repeats_or_is_null_and_comes_later_has_its_row(desk: Desk) -> None:
    job: dict[str, Any] = {
        "input": {"on_bad_id": "status", "context": None},
        "limits": {"max_error_share": 1.0},
        "output": {"mode": "append"},
    }
    one, none = {"id": "one", "instruction": "x"}, {"id": None, "instruction": "x"}
    desk.put([one, none])
    desk.run(**job)
    desk.put([one, none, none, one])
    assert desk.run(**job).num_published_rows == 2
    found = Counter((row["id"], row["status"]) for row in desk.rows())
    assert found == {("one", "ok"): 1, ("one", "duplicate_id"): 1, (None, "duplicate_id"): 2}
    # As earlier versions wrote them: under one key.
    key = next(row["request_key"] for row in desk.rows() if row["status"] == "ok")
    table = desk.spark.read.parquet(str(desk.out)).withColumn("request_key", F.lit(key)).drop("plan_id")
    table.write.parquet(str(desk.folder / "earlier" / "plan_id=p0"))
    job["output"]["path"] = str(desk.folder / "earlier")
    assert desk.run(**job).outcome == "nothing_to_do"


def test_an_output_of_another_schema_is_refused_with_the_difference(desk: Desk) -> None:
    desk.spark.range(3).selectExpr("id", "'x' response", "1 other").write.parquet(str(desk.out))
    desk.put(questions(3))
    before = contents(desk.out)
    error = desk.refused()
    assert isinstance(error, OutputError)
    for line in ("- other int", "+ status string", "~ id: the table has bigint, this job writes string"):
        assert line in str(error)
    assert contents(desk.out) == before


def test_a_folder_with_other_things_is_not_overwritten(desk: Desk) -> None:
    desk.out.mkdir()
    (desk.out / "thesis.txt").write_text("precious")
    desk.put(questions(3))
    assert "holds no Parquet table" in str(desk.refused())
    assert (desk.out / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("options", [Options(retry=("ok",)), Options(retry=("too_long",))])
def test_retry_wants_a_status_that_can_be_mended_and_a_table_that_can_be_changed(desk: Desk, options: Options) -> None:
    desk.put(questions(3))
    assert "--retry" in str(desk.refused(options))


def test_broken_json_lines_are_not_taken_for_rows(desk: Desk) -> None:
    (desk.folder / "input.jsonl").write_text('{"id": "1", "instruction": "x", "context": "c"}\nnot json at all\n')
    error = desk.refused()
    assert isinstance(error, InputError)
    assert "not json at all" not in str(error)


def test_text_of_the_input_never_reaches_a_message(desk: Desk) -> None:
    (desk.folder / "input.csv").write_text("id,instruction\n1,SECRET,too many,cells\n")
    error = desk.refused(input={"path": str(desk.folder / "input.csv"), "format": "csv", "context": None})
    assert "SECRET" not in str(error)


def test_json_numbers_and_schemas_are_taken_as_written(desk: Desk) -> None:
    (desk.folder / "input.jsonl").write_text(json.dumps({"id": "007", "instruction": "x", "n": 1.50}) + "\n")
    desk.run(input={"context": None}, output={"keep": ["n"]})
    assert desk.rows()[0]["n"] == "1.5"
    desk.run(
        input={"context": None, "schema": "id string, instruction string, n decimal(10,2)"},
        output={"keep": ["n"], "path": str(desk.folder / "out2")},
    )
    table = desk.spark.read.parquet(str(desk.folder / "out2"))
    assert table.schema["n"].dataType.simpleString() == "decimal(10,2)"
