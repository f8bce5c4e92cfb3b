"""The SQL functions: the job's answers, faults as nulls, from SQL, from Python and over Spark Connect."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import types as T

import dolly_batch.functions
from dolly_batch.errors import ConfigError
from dolly_batch.spark.tables.struct import struct_type
from dolly_batch.tasks.schema import read_schema
from tests.conftest import PROJECT
from tests.smollm2 import smollm2_folder
from tests.spark.desk import Desk
from tests.tasks.test_schema import DDL

ENGINE = {"kind": "plain", "num_threads": 1}
LABELS = ["positive", "negative"]
ASK = "Is this review positive or negative?"
# What both a job and `register` can be told of the tasks, so that the answers are another model's but for it.
TASKS: dict[str, dict[str, Any]] = {
    "generate": {"examples": [{"instruction": ASK, "context": "I hate it.", "response": "negative"}]},
    "classify": {"instruction": ASK, "calibration": "contextual", "normalization": "per_token", "none_below": 0.9},
    "summarize": {"instruction": "Summarize the text in one sentence.", "max_words": 30},
    "extract": {"instruction": "Extract the fields name and age.", "max_chars": 30},
}
ROWS = [
    {"id": "1", "text": "The lamp is wonderful. I love it."},
    {"id": "2", "text": "The coffee was terrible. I want my money back."},
    {"id": "3", "text": "Ada Berg lives in Paris. Ada Berg is 34 years old."},
    {"id": "null", "text": None},
    {"id": "blank", "text": " "},
    {"id": "long", "text": "word " * 4000},
]
QUERY = """
    SELECT id, dolly_generate('Is this review positive or negative?', text) AS generate,
           dolly_classify(text, array('positive', 'negative')) AS classify,
           dolly_extract(text, 'name STRING, age INT') AS extract,
           try_dolly_extract(text, 'name STRIN') AS refused,
           try_dolly_classify(text, array('positive', 'negative')) AS tried
    FROM texts
"""


def register(spark: SparkSession) -> dolly_batch.functions.Functions:
    return dolly_batch.functions.register(
        spark, "tiny", dtype="float32", tasks=TASKS, generation={"max_new_tokens": 48}, engine=ENGINE
    )


@pytest.fixture
def job_desk(desk: Desk) -> Desk:
    pytest.importorskip("torch")
    desk.put([{**row, "ask": "Is this review positive or negative?"} for row in ROWS])
    desk.document["engine"] = ENGINE
    desk.document["model"]["dtype"] = "float32"
    desk.document["generation"] = {"max_new_tokens": 48, "do_sample": False}
    desk.document["limits"] = {"max_error_share": 1.0}
    desk.document["input"] = {"path": str(desk.folder / "input.jsonl"), "format": "json", "id": "id"}
    return desk


def run_job(desk: Desk, name: str, **sections: Any) -> dict[str, dict[str, Any]]:
    path = str(desk.folder / name)
    desk.run(output={"path": path}, **sections)
    return {row["id"]: row.asDict(recursive=True) for row in desk.spark.read.parquet(path).collect()}


def test_sql_and_python_give_what_the_job_gives(job_desk: Desk) -> None:
    spark = job_desk.spark
    functions = register(spark)
    spark.createDataFrame(ROWS, "id STRING, text STRING").createOrReplaceTempView("texts")
    found = {row["id"]: row.asDict(recursive=True) for row in spark.sql(QUERY).collect()}
    labels = run_job(job_desk, "labels", task={"kind": "classify", "labels": LABELS, **TASKS["classify"]})
    assert {key: row["classify"] for key, row in found.items()} == {k: row["response"] for k, row in labels.items()}
    unsure = {key: row["response"] is None for key, row in labels.items() if row["status"] == "ok"}
    assert unsure == {key: labels[key]["confidence"] < TASKS["classify"]["none_below"] for key in unsure}
    assert {True, False} == {*unsure.values()}
    assert labels["1"]["response"] == "positive"
    assert found["1"]["tried"]["confidence"] == pytest.approx(labels["1"]["confidence"], abs=1e-5)
    asked = {"path": str(job_desk.folder / "input.jsonl"), "format": "json", "id": "id"}
    texts = run_job(
        job_desk, "texts", input={**asked, "instruction": "ask", "context": "text"}, task={**TASKS["generate"]}
    )
    assert [found[key]["generate"] for key in ("1", "2", "3")] == [texts[key]["response"] for key in ("1", "2", "3")]
    errors = {key: (row["tried"]["error"] or "").partition(":")[0] for key, row in found.items()}
    assert errors == {
        "1": "", "2": "", "3": "", "null": "null_instruction", "blank": "empty_instruction", "long": "too_long",
    }  # fmt: skip
    assert "STRIN" in found["1"]["refused"]["error"]
    assert found["1"]["refused"]["response"] is None
    people = run_job(job_desk, "people", task={"kind": "extract", "schema": "name STRING, age INT", **TASKS["extract"]})
    assert {key: row["extract"] and json.loads(row["extract"]) for key, row in found.items()} == {
        key: row["response"] for key, row in people.items()
    }
    # A struct, not text, where Python knows the schema; and a summary of what is too long for one prompt.
    three = spark.table("texts").filter("id = '3'")
    meant = {"positive": "praise", "negative": "a complaint"}
    person = three.select(
        functions.extract("text", "name STRING, age INT").alias("person"),
        functions.classify("text", meant, try_=True).alias("topic"),
    )
    assert person.schema["person"].dataType.simpleString() == "struct<name:string,age:int>"
    row = person.first()
    assert row is not None
    assert row.person.asDict() == json.loads(found["3"]["extract"])
    # These functions have an instruction of their own for classify, which has no place for what labels mean.
    assert (row.topic.response, "descriptions" in row.topic.error) == (None, True)
    long = spark.table("texts").filter("id IN ('long', 'null')")
    summaries = long.selectExpr("id", "try_dolly_summarize(text, 9) AS summary").collect()
    assert {row.id: row.summary.response is not None for row in summaries} == {"long": True, "null": False}


CONNECT = """
import json, sys
from pyspark.sql import SparkSession
from tests.spark.test_functions import QUERY, ROWS, register
spark = SparkSession.builder.remote("local[1]").getOrCreate()
register(spark)
spark.createDataFrame(ROWS, "id STRING, text STRING").createOrReplaceTempView("texts")
rows = [row.asDict(recursive=True) for row in spark.sql(QUERY).collect()]
print(json.dumps([type(spark).__module__, rows]))
"""


@pytest.mark.chaos
def test_over_spark_connect_they_give_the_same(job_desk: Desk, tmp_path: Path) -> None:
    pytest.importorskip("grpc")
    register(job_desk.spark)
    job_desk.spark.createDataFrame(ROWS, "id STRING, text STRING").createOrReplaceTempView("texts")
    expected = {row["id"]: row.asDict(recursive=True) for row in job_desk.spark.sql(QUERY).collect()}
    environment: dict[str, Any] = {key: value for key, value in os.environ.items() if not key.startswith("SPARK")}
    environment["PYTHONPATH"] = str(PROJECT)
    environment["PYSPARK_PYTHON"] = sys.executable
    ended = subprocess.run(
        [sys.executable, "-c", CONNECT], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    module, rows = json.loads(ended.stdout.splitlines()[-1])
    assert module.startswith("pyspark.sql.connect")
    assert {row["id"]: row for row in rows} == {
        key: {**row, "tried": {**row["tried"], "confidence": pytest.approx(row["tried"]["confidence"], abs=1e-5)}}
        for key, row in expected.items()
    }


def test_ddl_gives_the_types_that_spark_reads_in_it(spark: SparkSession) -> None:
    def without_lengths(kind: Any) -> Any:
        if isinstance(kind, T.StructType):
            return T.StructType([T.StructField(one.name, without_lengths(one.dataType)) for one in kind])
        if isinstance(kind, T.ArrayType):
            return T.ArrayType(without_lengths(kind.elementType))
        return T.StringType() if isinstance(kind, (T.VarcharType, T.CharType)) else kind

    for ddl in DDL:
        assert struct_type(read_schema(ddl)) == without_lengths(T._parse_datatype_string(ddl))


# Calls whose arguments have types that only Spark makes, and what `error` says of each.
ODD_CALLS = {
    "try_dolly_generate(n)": "invalid_arguments: text: must be a string, found a number",
    "try_dolly_generate(cast(text AS binary))": "invalid_arguments: text: must be a string, found binary",
    "try_dolly_generate(cast(x'ff41' AS string))": "bad_encoding: text is not valid UTF-8",
    "try_dolly_generate(text, struct(n))": "invalid_arguments: context: must be a string, found struct<n:int>",
    "try_dolly_generate(text, date'2024-01-01')": "invalid_arguments: context: must be a string, found date",
    "try_dolly_classify(text, array('a', cast(x'ff' AS string)))": "bad_encoding: labels is not valid UTF-8",
    "try_dolly_classify(text, map('a', 1))": "invalid_arguments: labels: must be an array of strings, or a map",
    "try_dolly_summarize(text, double('inf'))": "invalid_arguments: max_words: must be a whole number, found a number",
}


@pytest.mark.parametrize("arrow_udfs_from", [(4, 1), (99, 0)], ids=["Spark 4.1 and newer", "Spark 4.0"])
def test_odd_arguments_are_faults_of_the_row_and_end_no_query(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch, arrow_udfs_from: tuple[int, int]
) -> None:
    monkeypatch.setattr(dolly_batch.functions, "ARROW_UDFS_FROM", arrow_udfs_from)
    expected = {call: told for call, told in ODD_CALLS.items() if arrow_udfs_from == (4, 1) or "x'ff" not in call}
    dolly_batch.functions.register(spark, "tiny", engine={"kind": "echo"}, generation={"max_new_tokens": 48})
    calls = ", ".join(f"{call} AS c{number}" for number, call in enumerate(expected))
    row = spark.sql(f"SELECT {calls} FROM VALUES (1, 'a text') AS t(n, text)").first()
    assert row is not None
    for (call, told), result in zip(expected.items(), row, strict=True):
        assert result.response is None, call
        # pandas says less of what is in a struct or a map.
        assert result.error.startswith(told if arrow_udfs_from == (4, 1) else told.split("<")[0]), call


def test_python_refuses_arguments_that_a_query_could_not_use(job_desk: Desk) -> None:
    functions = register(job_desk.spark)
    with pytest.raises(ConfigError, match="STRIN"):
        functions.extract("text", "name STRIN")
    with pytest.raises(ConfigError, match="labels: 1 labels"):
        functions.classify("text", ["a"])
    with pytest.raises(ConfigError, match=r"labels: must be an array .* found string"):
        functions.classify("text", "yes")
    with pytest.raises(ConfigError, match="max_words: must be a whole number"):
        functions.summarize("text", 9.5)
    with pytest.raises(TypeError, match="labels"):
        functions.classify("text")
    with pytest.raises(AttributeError, match="the kinds of task are generate"):
        _ = functions.clasify
    assert {"generate", "classify", "summarize", "extract"} <= set(dir(functions))


def test_settings_that_cannot_work_are_refused(spark: SparkSession) -> None:
    with pytest.raises(ConfigError, match=r"generation\.top_p"):
        dolly_batch.functions.register(spark, "tiny", generation={"top_p": 2.0})
    for tasks, told in (
        ({"clasify": {}}, r"tasks\.clasify: unknown"),
        ({"classify": {"labels": LABELS}}, "an argument of dolly_classify"),
        ({"summarize": {"max_word": 9}}, "did you mean `max_words`"),
    ):
        with pytest.raises(ConfigError, match=told):
            dolly_batch.functions.register(spark, "tiny", tasks=tasks)
    for model in ("databricks/dolly-v2-3b", {"path": "databricks/dolly-v2-3b"}):
        with pytest.raises(ConfigError, match="stage_dir"):
            dolly_batch.functions.register(spark, model)
    with pytest.raises(ConfigError, match="quantizatoin"):
        dolly_batch.functions.register(spark, {"path": "tiny", "quantizatoin": "int8"})


@pytest.mark.long
def test_the_notebook_runs_top_to_bottom(spark: SparkSession) -> None:
    pytest.importorskip("torch")
    smollm2_folder()  # skips where it cannot be had
    source = (PROJECT / "notebooks" / "quickstart.py").read_text(encoding="utf-8")
    assert source.startswith("# Databricks notebook source\n")
    cells = source.split("# COMMAND ----------\n")
    assert len(cells) > 5
    scope: dict[str, Any] = {"spark": spark, "__name__": "__main__"}
    for cell in cells:
        exec(compile(cell, "quickstart.py", "exec"), scope)
    assert scope["by_function"] == scope["by_job"]
    # So small a model calls the coffee's review positive.
    assert {**scope["by_job"], "r2": None} == {"r1": "positive", "r2": None, "r3": "positive", "r4": None}
    assert scope["by_job"]["r2"] in ("positive", "negative")
    assert scope["person"].asDict().keys() == {"name", "city", "age"}
