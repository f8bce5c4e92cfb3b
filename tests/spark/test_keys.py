"""Keys: what tells rows apart, what tells questions apart, and that neither moves."""

from collections import Counter
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from dolly_batch.errors import InputError
from dolly_batch.spark.plan.cell_text import cell_text
from dolly_batch.spark.plan.keys import request_header, request_key, row_key, shown_ids
from dolly_batch.spark.plan.prepared_task import settled
from dolly_batch.spark.tables.columns import ColumnRef
from dolly_batch.tasks.base import TaskModel
from dolly_batch.tiny import MODEL_FOLDER
from tests.smollm2 import smollm2_folder
from tests.spark.desk import Desk, echo_document, load_job_text, questions

ANSI = "spark.sql.ansi.enabled"


def row_keys(spark: SparkSession, kind: T.DataType, values: list[Any]) -> list[str | None]:
    schema = T.StructType([T.StructField("n", T.IntegerType()), T.StructField("x", kind)])
    df = spark.createDataFrame(list(enumerate(values)), schema)
    return [row[0] for row in df.orderBy("n").select(row_key([ColumnRef(F.col("x"), "x", kind)])).collect()]


def test_equal_ids_of_different_width_have_one_key_and_different_types_do_not(spark: SparkSession) -> None:
    assert row_keys(spark, T.IntegerType(), [7]) == row_keys(spark, T.LongType(), [7]) == ["i7"]
    wide = row_keys(spark, T.DecimalType(10, 2), [Decimal("7.00"), Decimal("7.50"), Decimal("70.00")])
    assert wide == ["d7", "d7.5", "d70"]
    assert row_keys(spark, T.DecimalType(10, 0), [Decimal(70)]) == ["d70"]
    assert row_keys(spark, T.StringType(), ["7", "007", ""]) == ["s7", "s007", "s"]
    assert row_keys(spark, T.DateType(), [date(2024, 1, 2)]) == ["D2024-01-02"]
    assert row_keys(spark, T.BinaryType(), [b"\x00\xff"]) == ["b00FF"]
    assert row_keys(spark, T.TimestampNTZType(), [datetime(2024, 1, 2, 3, 4, 5, 60)]) == ["n2024-01-02 03:04:05.00006"]
    assert row_keys(spark, T.StringType(), [None]) == [None]


@pytest.mark.parametrize("ansi", ["true", "false"])
def test_a_decimal_is_the_same_text_in_every_session(spark: SparkSession, ansi: str) -> None:
    numbers = ["0", "0.0000001", "-1234567890123456789.5", "12345678901234567890"]
    kind, before = T.DecimalType(38, 18), spark.conf.get(ANSI)
    spark.conf.set(ANSI, ansi)
    try:
        keys = row_keys(spark, kind, [*map(Decimal, numbers), None])
        assert keys == [*(f"d{number}" for number in numbers), None]
        df = spark.createDataFrame([(Decimal(number),) for number in numbers], T.StructType([T.StructField("x", kind)]))
        texts = [row[0] for row in df.select(cell_text(F.col("x"), kind)).collect()]
        assert texts == [f"{Decimal(number):.18f}" for number in numbers]
    finally:
        spark.conf.set(ANSI, before)


@pytest.mark.parametrize(("zone", "ansi"), [("Asia/Kolkata", "true"), ("America/Lima", "false")])
def test_what_a_cell_holds_is_the_same_text_in_every_session(spark: SparkSession, zone: str, ansi: str) -> None:
    instant, small = "timestamp '2024-01-02 03:04:05.06 UTC'", "cast('0.0000001' AS decimal(8,7))"
    at, number = "2024-01-02 03:04:05.06", "0.0000001"
    expected = {
        f"array({instant}, null)": f"[{at}, null]",
        f"map({instant}, {small})": f"{{{at} -> {number}}}",
        f"named_struct('a', array(named_struct('b', {small}, 'c', 'x')), 'd', 1.5D)": f"{{[{{{number}, x}}], 1.5}}",
        f"named_struct('a', cast(null AS timestamp), 'b', {small})": f"{{null, {number}}}",
        f"if(1 = 0, named_struct('a', {instant}), null)": None,
        "array(1, 2)": "[1, 2]",
    }
    names = ("spark.sql.session.timeZone", ANSI)
    before = {name: spark.conf.get(name) for name in names}
    df = spark.range(1).select(*(F.expr(sql).alias(f"x{i}") for i, sql in enumerate(expected)))
    try:
        for name, value in zip(names, (zone, ansi), strict=True):
            spark.conf.set(name, value)
        found = df.select(*(cell_text(F.col(field.name), field.dataType) for field in df.schema)).collect()[0]
    finally:
        for name, value in before.items():
            spark.conf.set(name, value)
    assert list(found) == list(expected.values())


def test_composite_ids_cannot_be_mistaken_for_each_other(spark: SparkSession) -> None:
    df = spark.createDataFrame([("a", "bc"), ("ab", "c"), ("1:a", ""), ("", "1:a")], "x string, y string")
    chosen = [ColumnRef(F.col(name), name, T.StringType()) for name in ("x", "y")]
    keys = [row[0] for row in df.select(row_key(chosen)).collect()]
    assert len(set(keys)) == 4


@pytest.mark.parametrize("kind", [T.DoubleType(), T.BooleanType(), T.ArrayType(T.StringType())])
def test_an_id_without_an_exact_text_is_refused(spark: SparkSession, kind: T.DataType) -> None:
    with pytest.raises(InputError, match="`x` is"):
        row_key([ColumnRef(F.col("x"), "x", kind)])


texts = st.one_of(st.none(), st.text(alphabet="ab:1-\u00e9\U0001f600", max_size=4))


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(texts, texts), min_size=40, max_size=60))
def test_request_keys_are_equal_exactly_for_equal_questions(
    spark: SparkSession, pairs: list[tuple[str | None, str | None]]
) -> None:
    df = spark.createDataFrame(pairs, "i string, c string")
    keys = [row[0] for row in df.select(request_key("{}", F.col("i"), F.col("c"))).collect()]
    asked = [(instruction, context or None) for instruction, context in pairs]
    assert len(set(zip(asked, keys, strict=True))) == len(set(asked)) == len(set(keys))
    assert all(len(key) == 32 for key in keys)


def test_the_same_question_is_never_asked_twice_and_another_one_is(desk: Desk) -> None:
    desk.document["output"]["mode"] = "append"
    rows = questions(5)
    desk.put(rows)
    assert desk.run(generation={"seed": 1}).num_published_rows == 5
    assert desk.run(generation={"seed": 2}).outcome == "nothing_to_do"  # it matters only when sampling

    desk.put([*rows, {**rows[0], "id": "new"}])
    assert desk.run().num_published_rows == 1  # an old prompt under a new id is a new row

    changed = [{**rows[0], "instruction": "Changed."}, *rows[1:]]
    desk.put(changed)
    assert desk.run().num_published_rows == 1  # beside the old one
    assert Counter(row["id"] for row in desk.rows()) == {"r00000": 2, "new": 1, **{row["id"]: 1 for row in rows[1:]}}

    assert desk.run(generation={"max_new_tokens": 9}).num_published_rows == 5
    assert len(desk.rows()) == 12


def test_rows_without_ids_are_told_apart_by_content_and_number(desk: Desk) -> None:
    rows = [{"instruction": text, "tag": tag} for text, tag in [("a", "x"), ("a", "x"), ("a", "y"), ("b", "x")]]
    desk.put(rows)
    job: dict[str, Any] = {"input": {"id": None, "context": None}, "output": {"mode": "append", "keep": ["tag"]}}
    desk.run(**job)
    found = desk.rows()
    assert len({row["row_key"] for row in found}) == 4
    assert Counter((row["response"], row["tag"]) for row in found) == Counter(
        (r["instruction"], r["tag"]) for r in rows
    )
    more = [{"instruction": "a", "tag": "aa"}, {"instruction": "a", "tag": "x"}, *rows]
    desk.put(more)
    assert desk.run(**job).num_published_rows == 2
    found = desk.rows()
    assert Counter((row["response"], row["tag"]) for row in found) == Counter(
        (r["instruction"], r["tag"]) for r in more
    )


def test_ids_keep_their_text(desk: Desk) -> None:
    (desk.folder / "input.csv").write_text('id,instruction\n007,"say ""hi"",\nplease"\n08,x\n', encoding="utf-8")
    desk.run(input={"path": str(desk.folder / "input.csv"), "format": "csv", "context": None})
    rows = {row["id"]: row["response"] for row in desk.rows()}
    assert rows == {"007": 'say "hi",\nplease', "08": "x"}


def test_the_header_names_what_changes_answers_and_nothing_else(tmp_path: Path) -> None:
    def header(**sections: dict[str, Any]) -> str:
        document = {**echo_document(tmp_path), "engine": {"kind": "plain"}, **sections}
        return request_header(load_job_text(tmp_path, document), "model")

    usual = header()
    assert "penalty" not in usual  # as it was before there was one
    for kind in ("auto", "fast"):
        assert header(engine={"kind": kind, "processes": 2, "kv_bytes": 9, "prefix_sharing": False}) == usual
    for do_sample in (False, True):
        penalized = {"do_sample": do_sample, "repetition_penalty": 1.2}
        assert header(generation={"do_sample": do_sample}) != header(generation=penalized)
    assert header(model={"path": "tiny", "quantization": "int8"}) != usual
    labels = {"kind": "classify", "labels": ["a", "b"]}
    reads = {"input": {"path": "in", "format": "parquet"}}
    kinds = [{"kind": "plain", "kv_dtype": kv_dtype} for kv_dtype in ("auto", "int8", "fp8")]
    assert header(engine=kinds[0]) == usual
    assert len({header(engine=engine) for engine in kinds}) == 3
    assert header(engine=kinds[1], task=labels, **reads) == header(task=labels, **reads)  # scores are no cache's
    one, other = ({"task": {**labels, "cascade": {"agreement": share}}, **reads} for share in (0.95, 0.9))
    assert "cascade" not in header(task={**labels, "cascade": None}, **reads) == header(task=labels, **reads)
    assert header(task=labels, generation={"seed": 7}, **reads) == header(task=labels, **reads)
    assert (
        len({header(task=labels, **reads), header(**one), header(**other), header(**one, generation={"seed": 7})}) == 4
    )


def test_what_a_task_leaves_to_the_model_is_in_the_key_and_in_dollys_format_as_it_always_was(desk: Desk) -> None:
    desk.document["input"] = {"path": "in", "format": "parquet"}
    labels = {"kind": "classify", "labels": ["a", "b", "c"]}
    for folder, calibration in ((MODEL_FOLDER, "none"), (smollm2_folder(), "contextual")):
        job = settled(desk.job(task=labels), TaskModel(str(folder), 2048))
        assert request_header(job, "model") == request_header(
            desk.job(task={**labels, "calibration": calibration}), "model"
        )


def test_a_tasks_settings_are_part_of_the_question_and_what_stands_in_its_text_is_not_twice(desk: Desk) -> None:
    desk.document["input"] = {"path": "in", "format": "parquet"}
    labels = {"kind": "classify", "labels": ["a", "b"]}
    tasks: list[dict[str, Any]] = [
        labels,
        {**labels, "labels": ["b", "a"]},
        {**labels, "none_below": 0.5},
        {**labels, "normalization": "per_token"},
        {**labels, "calibration": "contextual"},
        {**labels, "calibration": ["one row", "another row"]},
        {**labels, "with_end": False},
        {"kind": "extract", "schema": "a INT"},
        {"kind": "extract", "schema": "a BIGINT"},
        {"kind": "extract", "schema": "a INT", "max_chars": 7},
        {"kind": "summarize"},
        {"kind": "generate"},
    ]
    headers = [request_header(desk.job(task=task), "model") for task in tasks]
    assert len(set(headers)) == len(tasks)
    assert request_header(desk.job(task={"kind": "summarize", "max_words": 9}), "model") == headers[-2]
    assert request_header(desk.job(task={"template": "{a}"}), "model") == headers[-1]
    # Labels are scored: how text would be generated is no part of the question.
    assert request_header(desk.job(task=labels, generation={"max_new_tokens": 7}), "model") == headers[0]


@pytest.mark.parametrize(
    ("keys", "num_ids", "shown"),
    [
        (["sr00001", "i42", "t5"], 1, "'r00001' (2 times), '42' (2 times), '5' (2 times)"),
        (["sanna@example.org", "sAnna Schmidt", "sanna", "s12 Elm Street", "s7"], 1,
         "'7' (2 times), 4 that may name a person, and are not shown"),
        (["3:sa12:i7"], 2, "'a1/7' (2 times)"),
        (["5:sAnna2:i7"], 2, "1 that may name a person, and are not shown"),
        (["h" + "0" * 32], 1, f"'{'0' * 32}' (2 times)"),
    ],
)  # fmt: skip
def test_of_ids_plain_codes_are_shown(keys: list[str], num_ids: int, shown: str) -> None:
    assert shown_ids([(key, 2) for key in keys], num_ids) == shown
