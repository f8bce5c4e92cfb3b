"""Odd outputs: what can be written comes back as it was, and what cannot is refused before the first question."""

import json
import os
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from delta.tables import DeltaTable
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from dolly_batch.errors import OutputError, Stopped
from dolly_batch.spark.plan.cell_text import cell_text
from dolly_batch.spark.plan.keys import kept_values_hash
from dolly_batch.spark.session.conf import session_conf
from dolly_batch.spark.tables.columns import ColumnRef, output_schema
from dolly_batch.spark.tables.places import check_catalog_stays, name_parts
from tests.spark.desk import Desk, questions

BERLIN = {"spark.sql.session.timeZone": "Europe/Berlin"}
NIGHT = datetime(2024, 10, 27, 0, 30, 0, 7, tzinfo=UTC)  # in Berlin the clock shows this time twice
ODD = ["007", "a/b%20 \u00e9[x]{y}*?", None]
TYPES = {
    "code": pa.string(),
    "at": pa.timestamp("us", "UTC"),
    "flag": pa.bool_(),
    "big": pa.int64(),
    "day": pa.date32(),
    "amount": pa.decimal128(10, 2),
    "real": pa.float64(),
}


def odd_rows() -> list[dict[str, Any]]:
    return [
        {
            **{"id": str(i), "instruction": f"say {i}", "seen": NIGHT, "code": code},
            **{"at": NIGHT.replace(hour=i % 2), "flag": i == 1, "big": i * 10**15, "day": date(2024, 2, 29)},
            **{"amount": Decimal(f"{i}.50"), "real": -0.1 * i},
        }
        for i, code in enumerate(ODD)
    ]


def put(desk: Desk, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows as a Parquet input; the job's section for it."""
    schema = pa.schema({"id": pa.string(), "instruction": pa.string(), "seen": pa.timestamp("us", "UTC"), **TYPES})
    pq.write_table(pa.Table.from_pylist(rows, schema), desk.folder / "in.parquet")
    return {"path": str(desk.folder / "in.parquet"), "format": "parquet", "context": None}


@pytest.mark.parametrize("format", ["parquet", pytest.param("delta", marks=pytest.mark.chaos)])
def test_partitions_are_taken_up_by_the_next_run_with_the_values_they_had(
    desk: Desk, session: tuple[SparkSession, str | None], format: str
) -> None:
    if session[1] and format == "delta":
        pytest.skip(session[1])
    rows = odd_rows()
    job = {
        "input": put(desk, rows),
        "output": {"format": format, "mode": "overwrite", "keep": ["seen", *TYPES], "partition_by": [*TYPES]},
    }
    assert desk.run(**job).num_published_rows == len(rows)
    if format == "delta":
        assert desk.run(**job).outcome == "nothing_to_do"
        put(desk, rows[1:])
        with session_conf(desk.spark, {"spark.sql.sources.partitionOverwriteMode": "dynamic"}):
            desk.run(**job)
        assert {row["id"] for row in desk.rows("delta")} == {row["id"] for row in rows[1:]}
        return
    with session_conf(desk.spark, BERLIN):
        assert desk.run(**job).outcome == "nothing_to_do"
    rows[0]["seen"] = NIGHT.replace(microsecond=8)
    put(desk, rows)
    report = desk.run(**job)
    assert (report.outcome, report.num_answered_by_model) == ("complete", 0)
    job_table = desk.spark.read.option("timeZone", "UTC").schema(
        "id string, seen timestamp, code string, at timestamp, flag boolean, big bigint, day date, "
        "amount decimal(10,2), real double"
    )
    micros = [F.unix_micros(name).alias(name) for name in ("seen", "at")]
    found = job_table.parquet(str(desk.out)).select("id", "code", "flag", "big", "day", "amount", "real", *micros)
    expected = {
        row["id"]: {**row, "seen": int(row["seen"].timestamp() * 10**6), "at": round(row["at"].timestamp() * 10**6)}
        for row in rows
    }
    for row in found.collect():
        assert row.asDict() == {name: expected[row.id][name] for name in row.asDict()}


def test_a_hash_of_kept_values_tells_all_values_apart_and_is_the_same_in_every_session(spark: SparkSession) -> None:
    micros = "timestamp'2024-01-01 00:00:00.123456Z'"
    kinds = [
        [micros, micros.replace("456", "457"), micros.replace("456", "")],
        ["timestamp_ntz'2024-01-01 00:00:00.000001'", "timestamp_ntz'2024-01-01 00:00:00'"],
        [f"array(struct({micros} as at))", f"array(struct({micros.replace('456', '457')} as at))", "array()"],
        ["map(x'00ff', 1)", "map(x'00fe', 1)"],
        ["map(struct('a' as x, 'b' as y), 1)", "map(struct('a, b' as x, '' as y), 1)"],
        ["double('nan')", "0.0D", "-0.0D", "cast(null as double)"],
        ["interval '1 02:03:04.5' day to second", "interval '1 02:03:04.500001' day to second"],
        ["x'00'", "x''"],
    ]
    names = [(f"k{i}", f"k{i}_{j}", sql) for i, values in enumerate(kinds) for j, sql in enumerate(values)]

    def hashes() -> list[str]:
        table = spark.range(1).selectExpr(*(f"{sql} as {name}" for _, name, sql in names))
        refs = [ColumnRef(F.col(name), kind, table.schema[name].dataType) for kind, name, _ in names]
        return list(table.select(*(kept_values_hash([ref]) for ref in refs)).collect()[0])

    first = hashes()
    assert len(set(first)) == len(names)
    with session_conf(spark, BERLIN):
        assert hashes() == first
    # What JSON tells exactly keeps the key that it has in finished tables.
    ever = spark.range(1).selectExpr(f"{micros.replace('456', '')} as k0").select(F.to_json(F.struct("k0")).alias("j"))
    assert ever.select(F.sha2("j", 256)).collect()[0][0] == first[2]


def test_an_instant_reads_the_same_in_a_prompt_in_every_session(spark: SparkSession) -> None:
    times = ["2024-10-27 00:30:00.12", "2024-10-27 01:30:00", "1500-01-01 00:00:00.000001", "9999-12-31 23:59:59"]
    table = spark.createDataFrame([(f"{text}Z",) for text in times], "x string").select(F.col("x").cast("timestamp"))
    with session_conf(spark, BERLIN):
        found = table.select(cell_text(F.col("x"), T.TimestampType())).collect()
    assert [row[0] for row in found] == [row[0] for row in table.select(F.col("x").cast("string")).collect()] == times


def test_a_link_stays_and_letters_of_globs_are_letters(desk: Desk) -> None:
    disk = desk.folder / "disk[1]" / "an*sw?rs{a,b}"
    disk.parent.mkdir()
    os.symlink(disk, desk.out)
    (desk.folder / "disk1" / "answers").mkdir(parents=True)
    for number in (2, 3):
        desk.put(questions(number))
        report = desk.run(
            work_dir=str(desk.folder / "w[0-9]{x}*"), plan={"max_shard_rows": 1}, output={"prefix": "a.dot"}
        )
        assert (report.num_input_rows, report.num_answered_by_model) == (number, 2 if number == 2 else 1)
    assert desk.out.is_symlink()
    tables = pa.concat_tables(pq.read_table(file) for file in disk.glob("*.parquet"))
    assert sorted(tables["id"].to_pylist()) == [row["id"] for row in questions(3)]
    assert not list((desk.folder / "disk1" / "answers").iterdir())


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a file": ({"output": {"path": "FILE"}}, "no folder"),
    "below a file": ({"output": {"path": "FILE/out"}}, "FILE is no folder"),
    "unwritable": ({"output": {"path": "/proc/nowhere/out"}}, "cannot be written: No such file or directory"),
    "unwritable, append": ({"output": {"path": "/proc/nowhere/out", "mode": "append"}}, "cannot be written"),
    "a mount point": ({"output": {"path": "/proc"}}, "output /proc"),
    "work_dir is the output": ({"work_dir": "OUT"}, "lies in the output"),
    "work_dir in the output": ({"work_dir": "OUT/work"}, "lies in the output"),
    "an empty string": ({"output": {"keep": ["empty"], "partition_by": ["empty"]}}, "`empty` has values.*1 rows"),
    "the name of null": ({"output": {"keep": ["hive"], "partition_by": ["hive"]}}, "`hive` has values.*1 rows"),
    "a long name": ({"output": {"keep": ["long"], "partition_by": ["long"]}}, "`long` has values.*1 rows"),
    "an array": ({"output": {"keep": ["list"], "partition_by": ["list"]}}, "`list` is array"),
    "an answer": ({"output": {"partition_by": ["response"]}}, "text that the model writes"),
    "twice": ({"output": {"partition_by": ["id", "ID"]}}, "twice"),
    "a run's own folder": ({"output": {"partition_by": ["plan_id"], "mode": "append"}}, "leave it out"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_output_that_cannot_be_is_refused_before_any_work(desk: Desk, case: str) -> None:
    sections, message = REFUSED[case]
    (desk.folder / "FILE").write_text("precious")
    odd = {"empty": "", "hive": "__HIVE_DEFAULT_PARTITION__", "long": "/" * 90, "list": ["a"]}
    desk.put([{**questions(1)[0], **odd}])
    text = json.dumps(sections).replace('"FILE', f'"{desk.folder}/FILE').replace('"OUT', f'"{desk.out}')
    assert_refused(desk, message, **json.loads(text))
    assert (desk.folder / "FILE").read_text() == "precious"
    assert not list(desk.out.glob("*.parquet"))


def assert_refused(desk: Desk, message: str, **sections: Any) -> None:
    with pytest.raises(OutputError, match=message) as caught:
        desk.run(**sections)
    assert "java" not in str(caught.value).lower()
    assert not list((desk.folder / "work").glob("p*"))
    assert not list(desk.folder.rglob(".dolly_batch_trial*"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("nosuchdb.answers", "nosuchdb. cannot be found"),
        ("nosuch.db.answers", "nosuch"),
        ("my-db.answers", "write '`my-db`.answers'"),
        ("a.b.c.d", "a dot too many"),
        ("an_odd_view", "is a view, or a table of another format"),
        ("an_odd_table", "is a view, or a table of another format|another schema"),
    ],
)
def test_a_name_in_the_catalog_that_cannot_be_written_is_refused(delta_desk: Desk, table: str, message: str) -> None:
    delta_desk.put(questions(1))
    if "odd" in table:
        table_of = empty_table(delta_desk, [])
        if table == "an_odd_view":
            table_of.createOrReplaceTempView(table)
        else:
            table_of.write.format("parquet").mode("overwrite").saveAsTable(table)
    assert_refused(delta_desk, message, output={"path": None, "table": table})


def test_a_table_that_ends_with_the_run_is_refused(spark: SparkSession) -> None:
    with pytest.raises(OutputError, match=r"ends with this run.*output\.path"):
        check_catalog_stays(spark, "answers")
    check_catalog_stays(spark, "main.support.answers")


def test_a_name_with_backticks_is_read_as_spark_does() -> None:
    assert name_parts("main.`my-db`.`a``.b`") == ["main", "`my-db`", "`a``.b`"]


def empty_table(desk: Desk, keep: list[str]) -> DataFrame:
    id_, *kept = (ColumnRef(F.col(name), name, T.StringType()) for name in ["id", *keep])
    return desk.spark.createDataFrame([], output_schema(desk.job(), [id_], kept))


@pytest.fixture
def held(delta_desk: Desk) -> Desk:
    """A Delta table without rows, with a kept column `tag`."""
    empty_table(delta_desk, ["tag"]).write.format("delta").save(str(delta_desk.out))
    return delta_desk


def test_what_a_delta_table_forbids_is_refused_by_its_name(held: Desk) -> None:
    name, log = f"delta.`{held.out}`", held.out / "_delta_log"
    keep = {"output": {"keep": ["tag"]}}
    held.put([{**row, "tag": "y"} for row in questions(2)])
    assert_refused(
        held, "partitioned by nothing.*`?tag", output={"keep": ["tag"], "partition_by": ["tag"], "mode": "overwrite"}
    )
    held.spark.sql(f"ALTER TABLE {name} ADD CONSTRAINT only_x CHECK (tag = 'x')")
    assert_refused(held, "CHECK constraint only_x forbids.*2 rows", **keep)
    held.spark.sql(f"ALTER TABLE {name} DROP CONSTRAINT only_x")
    held.spark.sql(f"ALTER TABLE {name} SET TBLPROPERTIES (delta.appendOnly = true)")
    assert_refused(held, "delta.appendOnly.*mode merge", output={"keep": ["tag"], "mode": "merge"})
    held.spark.sql(f"ALTER TABLE {name} SET TBLPROPERTIES (delta.appendOnly = false)")
    with session_conf(held.spark, {"spark.sql.caseSensitive": "true"}):
        assert_refused(held, "another schema", output={"keep": ["tag"], "prefix": "P"})
    features = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": [], "writerFeatures": ["notYetThought"]}
    commit = {"commitInfo": {"timestamp": 1, "operation": "x", "operationParameters": {}}}
    version = len(list(log.glob("*.json")))
    (log / f"{version:020}.json").write_text(json.dumps(commit) + "\n" + json.dumps({"protocol": features}) + "\n")
    assert_refused(held, "notYetThought", **keep)
    assert len(list(log.glob("*.json"))) == version + 1  # a trial is no commit


@pytest.mark.parametrize(
    ("column", "message"), [("tag", "null in these rows.*1 rows"), ("error", "NOT NULL.*DROP NOT")]
)
def test_a_column_that_may_not_be_null_is_named(held: Desk, column: str, message: str) -> None:
    table = held.spark.read.format("delta").load(str(held.out))
    new = DeltaTable.create(held.spark).location(str(held.folder / "strict"))
    for field in table.schema.fields:
        new = new.addColumn(field.name, field.dataType, nullable=field.name != column)
    new.execute()
    held.put([{**questions(1)[0], "tag": None}, {**questions(1, start=1)[0], "tag": "x"}])
    assert_refused(held, message, output={"keep": ["tag"], "path": str(held.folder / "strict")})


def test_an_answer_that_a_constraint_forbids_is_kept_until_the_constraint_is_gone(held: Desk) -> None:
    name = f"delta.`{held.out}`"
    held.spark.sql(f"ALTER TABLE {name} ADD CONSTRAINT brief CHECK (num_prompt_tokens < 1 OR id = 'r00000')")
    held.put([{**row, "tag": "SECRET"} for row in questions(3)])
    with pytest.raises(Stopped, match="breaks the table's constraint brief") as caught:
        held.run(output={"keep": ["tag"]})
    assert "SECRET" not in str(caught.value)
    held.spark.sql(f"ALTER TABLE {name} DROP CONSTRAINT brief")
    report = held.run(output={"keep": ["tag"]})
    assert (report.outcome, report.num_published_rows) == ("complete", 3)


def test_a_type_that_delta_lacks_is_refused_before_any_work(delta_desk: Desk) -> None:
    source = str(delta_desk.folder / "in")
    columns = ["'a' id", "'say' instruction", "interval '1' day wait"]
    delta_desk.spark.range(1).selectExpr(*columns).write.parquet(source)
    read = {"path": source, "format": "parquet", "context": None}
    assert_refused(delta_desk, "The Delta datasource.*`wait`.*INTERVAL DAY", input=read, output={"keep": ["wait"]})
    assert not delta_desk.out.exists()
