"""Delta outputs: append, merge, overwrite and --retry, each one commit, as independent readers see them."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable as RustDeltaTable

from dolly_batch import Options
from dolly_batch.engine.plain.engine import PlainEngine
from dolly_batch.engine.protocol import generate
from dolly_batch.engine.weights.loading import load_model
from dolly_batch.errors import InputError, OutputError
from dolly_batch.prompt import PromptEncoder
from dolly_batch.records import Completion, GenerationParams, Request
from dolly_batch.tiny import MODEL_FOLDER
from tests.spark.desk import Desk, questions


def read_by_rust(path: Path) -> list[dict[str, Any]]:
    """The table as delta-rs reads it: no JVM, and no code of Spark's."""
    rows: list[dict[str, Any]] = RustDeltaTable(str(path)).to_pyarrow_table().to_pylist()
    return rows


def operations(desk: Desk) -> list[str]:
    return [entry["operation"] for entry in reversed(RustDeltaTable(str(desk.out)).history())]


def test_append_is_one_commit_and_never_adds_a_row_twice(delta_desk: Desk) -> None:
    delta_desk.put(questions(12))
    delta_desk.run(output={"keep": ["context"]}, plan={"max_shard_rows": 4})
    delta_desk.put(questions(20))
    report = delta_desk.run(output={"keep": ["context"]})
    assert report.num_published_rows == 8
    assert delta_desk.run(output={"keep": ["context"]}).outcome == "nothing_to_do"
    assert operations(delta_desk)[1:] == ["WRITE", "WRITE"]
    rust = read_by_rust(delta_desk.out)
    assert Counter(row["id"] for row in rust) == Counter(row["id"] for row in questions(20))
    spark = delta_desk.rows("delta")
    assert sorted(row["response"] for row in spark) == sorted(row["response"] for row in rust)
    assert {row["id"]: row["context"] for row in rust} == {row["id"]: row["context"] for row in questions(20)}


def test_merge_replaces_the_row_of_a_changed_question(delta_desk: Desk) -> None:
    delta_desk.put(questions(6))
    delta_desk.run(output={"mode": "merge"})
    delta_desk.put([{"id": "r00000", "instruction": "Changed."}, *questions(6, start=1)])
    report = delta_desk.run(output={"mode": "merge"})
    assert report.num_published_rows == 2
    rows = {row["id"]: row["response"] for row in read_by_rust(delta_desk.out)}
    assert len(rows) == RustDeltaTable(str(delta_desk.out)).to_pyarrow_table().num_rows == 7
    assert rows["r00000"] == "Changed."
    # In mode append a changed question is a row of its own: such a table has two of one id, and none to replace.
    delta_desk.put([{"id": "r00000", "instruction": "Once more.", "context": None}])
    delta_desk.run(output={"mode": "append"})
    delta_desk.put([{"id": "r00000", "instruction": "And again.", "context": None}])
    assert "r00000" in str(delta_desk.refused(output={"mode": "merge"}))


def test_merge_needs_ids_that_tell_rows_apart(delta_desk: Desk) -> None:
    delta_desk.put([*questions(2), *questions(1)])
    error = delta_desk.refused(output={"mode": "merge"}, input={"on_bad_id": "status"})
    assert isinstance(error, InputError)


def test_a_name_that_delta_refuses_is_refused_before_any_work(delta_desk: Desk) -> None:
    delta_desk.put([{"id": "a", "instruction": "x", "context": "c", "odd name": "y"}])
    assert "as `odd name` has" in str(delta_desk.refused(output={"keep": ["odd name"]}))
    assert not delta_desk.out.exists()
    assert delta_desk.run(output={"keep": ["odd name"], "format": "parquet", "mode": "overwrite"}).by_status == {
        "ok": 1
    }


def test_overwrite_leaves_exactly_the_inputs_rows(delta_desk: Desk) -> None:
    delta_desk.put(questions(6))
    delta_desk.run(output={"mode": "overwrite"})
    delta_desk.put(questions(6, start=3))
    report = delta_desk.run(output={"mode": "overwrite"})
    assert report.num_answered_by_model == 3
    assert sorted(row["id"] for row in read_by_rust(delta_desk.out)) == [row["id"] for row in questions(6, start=3)]
    assert delta_desk.run(output={"mode": "overwrite"}).outcome == "nothing_to_do"


LONG = [
    "Write a short story about Igor in Salzburg.",
    "Write two lines about the sea.",
    "What is the capital of Portugal?",
    "Give me three ideas for a birthday gift.",
    "List four ideas for a rainy day. Use dashes.",
]


@dataclass
class InOneGo:
    """What the model answers with so many tokens, and the rows cut off whose text, stripped, still tells its tokens."""

    answers: dict[str, Completion]
    told: list[str]


def answers_in_one_go(max_new_tokens: int) -> InOneGo:
    loaded = load_model(MODEL_FOLDER, dtype="float32", device="cpu")
    encoder, params = PromptEncoder.from_folder(MODEL_FOLDER), GenerationParams(max_new_tokens, do_sample=False)
    requests = [Request(text, tuple(encoder.encode(text, None)), params) for text in LONG]
    answers = {completion.key: completion for completion in generate(PlainEngine(loaded), requests)}
    cut = [a for a in answers.values() if a.finish_reason == "length"]
    return InOneGo(answers, [a.key for a in cut if tuple(encoder.encode_text(a.text)) == a.token_ids])


def test_retry_goes_on_with_truncated_rows_alone_and_the_daily_run_finds_nothing(delta_desk: Desk) -> None:
    """The stored tokens are taken over, the keys stay, and in the end each answer is the one given in one go."""
    delta_desk.document["engine"] = {"kind": "fast", "processes": 1}
    delta_desk.document["model"]["dtype"] = "float32"
    short = "What is four plus three?"
    delta_desk.put([{"id": text, "instruction": text} for text in [*LONG, short]])
    retry, asked = Options(retry=("truncated",)), {"input": {"context": None}}

    def stored() -> dict[str, dict[str, Any]]:
        rows = read_by_rust(delta_desk.out)
        assert len(rows) == len({row["id"] for row in rows})
        return {row["id"]: row for row in rows}

    twelve = {"generation": {"max_new_tokens": 12, "do_sample": False}, **asked}
    assert delta_desk.run(**twelve).by_status == {"ok": 1, "truncated": len(LONG)}
    first, cut = stored(), answers_in_one_go(12)
    again, longer = delta_desk.run(retry, **twelve), answers_in_one_go(24)  # by as many tokens again
    assert 0 < again.num_continued_rows == len(cut.told)
    assert again.num_restarted_rows == again.num_answered_by_model - len(cut.told) == len(LONG) - len(cut.told)
    assert again.num_begun_tokens == 12 * len(cut.told)
    assert {text: stored()[text]["response"] for text in LONG} == {t: longer.answers[t].text for t in LONG}
    last = delta_desk.run(retry, generation={"max_new_tokens": 64, "do_sample": False}, **asked)
    found, expected = stored(), answers_in_one_go(64).answers
    assert last.num_answered_by_model == sum(a.finish_reason == "length" for a in longer.answers.values()) > 0
    assert 0 < last.num_continued_rows == len(longer.told)
    assert last.num_begun_tokens == 24 * len(longer.told)
    for text in LONG:
        row, answer = found[text], expected[text]
        told = (row["response"], row["num_completion_tokens"], row["status"])
        assert told == (answer.text, answer.num_completion_tokens, "ok")
        assert row["attempt"] == (3 if longer.answers[text].finish_reason == "length" else 2)
        assert row["request_key"] == first[text]["request_key"]
    assert found[short] == first[short]
    assert delta_desk.run(**twelve).outcome == "nothing_to_do"


@pytest.mark.chaos
def test_partitioned_tables(delta_desk: Desk) -> None:
    delta_desk.put([{**row, "tag": f"t{i % 3}"} for i, row in enumerate(questions(9))])
    for _ in range(2):
        report = delta_desk.run(output={"keep": ["tag"], "partition_by": ["tag"]})
    assert report.outcome == "nothing_to_do"
    assert RustDeltaTable(str(delta_desk.out)).metadata().partition_columns == ["tag"]
    assert Counter(row["tag"] for row in read_by_rust(delta_desk.out)) == {"t0": 3, "t1": 3, "t2": 3}


def test_a_delta_input_is_read_at_one_version(delta_desk: Desk) -> None:
    source = str(delta_desk.folder / "in")
    frame = delta_desk.spark.range(5).selectExpr("cast(id as string) id", "concat('say ', id) instruction")
    frame.write.format("delta").save(source)
    frame.selectExpr("concat('x', id) id", "instruction").write.format("delta").mode("append").save(source)
    read = {"path": source, "format": "delta", "context": None}
    delta_desk.run(input={**read, "options": {"versionAsOf": "0"}})
    assert len(read_by_rust(delta_desk.out)) == 5
    delta_desk.spark.sql(f"CREATE TABLE delta_questions USING delta LOCATION '{source}'")
    assert delta_desk.run(input={**by_name("delta_questions"), "context": None}).num_published_rows == 5


def test_catalog_tables_in_and_out(delta_desk: Desk) -> None:
    """A table of Parquet files in; a Delta table out, which the job makes."""
    frame = delta_desk.spark.range(5).selectExpr("cast(id as string) id", "concat('say ', id) instruction")
    frame.write.format("parquet").saveAsTable("parquet_questions")
    tables = {"input": {**by_name("parquet_questions"), "context": None}, "output": {"path": None, "table": "answers"}}
    assert delta_desk.run(**tables).num_published_rows == 5
    assert delta_desk.run(**tables).outcome == "nothing_to_do"
    rows = {row["id"]: row["response"] for row in delta_desk.spark.table("answers").collect()}
    assert rows == {str(i): f"say {i}" for i in range(5)}
    warehouse = Path(str(delta_desk.spark.conf.get("spark.sql.warehouse.dir")).removeprefix("file:"))
    assert {row["id"]: row["response"] for row in read_by_rust(warehouse / "answers")} == rows
    same = {"input": {**by_name("answers"), "instruction": "response", "context": None}, "output": tables["output"]}
    assert isinstance(delta_desk.refused(**same), OutputError)


def by_name(table: str) -> dict[str, str | None]:
    return {"path": None, "format": None, "table": table}


@pytest.mark.chaos
def test_a_parquet_output_is_not_taken_for_delta(delta_desk: Desk) -> None:
    delta_desk.put(questions(2))
    delta_desk.run()
    error = delta_desk.refused(output={"format": "parquet", "mode": "overwrite"})
    assert "it is a Delta table" in str(error)
    shutil.rmtree(delta_desk.out)
    delta_desk.run(output={"format": "parquet", "mode": "overwrite"})
    assert "not a Delta table" in str(delta_desk.refused())


READ_BY_SAIL = """
import json, os, sys
from pyspark.sql import SparkSession
from pysail.spark import SparkConnectServer
server = SparkConnectServer(port=0)
server.start()
spark = SparkSession.builder.remote("sc://localhost:%d" % server.listening_address[1]).create()
rows = spark.read.format("delta").load(sys.argv[1]).select("id", "response", "status").collect()
print(json.dumps([list(row) for row in rows]), flush=True)
os._exit(0)  # the server's threads do not end by themselves
"""


def test_a_jvm_free_engine_reads_the_same_rows(delta_desk: Desk) -> None:
    """In a process of its own: one that has been a Connect client turns every function of pyspark into a remote one."""
    pytest.importorskip("pysail", reason="pysail is not installed")
    delta_desk.put(questions(5))
    delta_desk.run()
    command = [sys.executable, "-c", READ_BY_SAIL, str(delta_desk.out)]
    alone = {key: value for key, value in os.environ.items() if not key.startswith(("SPARK", "PYSPARK"))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=alone, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert sorted(rows) == sorted([row["id"], row["response"], row["status"]] for row in delta_desk.rows("delta"))
