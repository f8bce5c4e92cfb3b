"""Delta outputs: append, merge, overwrite and --retry, each one commit, as independent readers see them."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable as RustDeltaTable

from dolly_batch.errors import InputError
from dolly_batch.spark.run import Options
from tests.spark.desk import Desk, questions


def read_by_rust(path: Path) -> list[dict[str, Any]]:
    """The table as delta-rs reads it: no JVM, and no code of Spark's."""
    rows: list[dict[str, Any]] = RustDeltaTable(str(path)).to_pyarrow_table().to_pylist()
    return rows


def operations(desk: Desk) -> list[str]:
    return [entry["operation"] for entry in reversed(RustDeltaTable(str(desk.out)).history())]


def test_append_is_one_insert_only_merge_and_never_adds_a_row_twice(delta_desk: Desk) -> None:
    delta_desk.put(questions(12))
    delta_desk.run(output={"keep": ["context"]}, plan={"max_shard_rows": 4})
    delta_desk.put(questions(20))
    report = delta_desk.run(output={"keep": ["context"]})
    assert report.num_published_rows == 8
    assert delta_desk.run(output={"keep": ["context"]}).outcome == "nothing_to_do"
    assert operations(delta_desk)[1:] == ["MERGE", "MERGE"]
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


def test_retry_answers_only_the_named_rows_again_and_the_daily_run_finds_nothing(delta_desk: Desk) -> None:
    """Rows cut off by max_new_tokens keep their question; the echo engine cuts them off again, on attempt 2."""
    short = {"max_new_tokens": 6}
    delta_desk.put(
        [{"id": "cut", "instruction": "one two three four five six seven"}, {"id": "fits", "instruction": "Hi"}]
    )
    read = {"context": None}
    first = delta_desk.run(generation=short, input=read)
    assert first.by_status == {"ok": 1, "truncated": 1}
    report = delta_desk.run(Options(retry=("truncated",)), generation=short, input=read)
    assert (report.num_answered_by_model, report.by_status) == (1, {"truncated": 1})
    rows = {row["id"]: row["attempt"] for row in read_by_rust(delta_desk.out)}
    assert rows == {"cut": 2, "fits": 1}
    assert delta_desk.run(generation=short, input=read).outcome == "nothing_to_do"


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
    assert delta_desk.run(input=read).num_published_rows == 5


def test_a_parquet_output_is_not_taken_for_delta(delta_desk: Desk) -> None:
    delta_desk.put(questions(2))
    delta_desk.run()
    error = delta_desk.refused(output={"format": "parquet", "mode": "overwrite"})
    assert "it is a Delta table" in str(error)
    shutil.rmtree(delta_desk.out)
    delta_desk.run(output={"format": "parquet", "mode": "overwrite"})
    assert "not a Delta table" in str(delta_desk.refused())


READ_BY_SAIL = """
import json, sys
from pysail.spark import SparkConnectServer
server = SparkConnectServer(port=0)
server.start()
spark = SparkSession.builder.remote("sc://localhost:%d" % server.listening_address[1]).create()
rows = spark.read.format("delta").load(sys.argv[1]).select("id", "response", "status").collect()
print(json.dumps([list(row) for row in rows]))
"""


@pytest.mark.chaos
def test_a_jvm_free_engine_reads_the_same_rows(delta_desk: Desk) -> None:
    """In a process of its own: one that has been a Connect client turns every function of pyspark into a remote one."""
    pytest.importorskip("pysail", reason="pysail is not installed")
    delta_desk.put(questions(5))
    delta_desk.run()
    command = [sys.executable, "-c", READ_BY_SAIL, str(delta_desk.out)]
    alone = {key: value for key, value in os.environ.items() if not key.startswith(("SPARK", "PYSPARK"))}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=alone, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert sorted(rows) == sorted([row["id"], row["response"], row["status"]] for row in delta_desk.rows("delta"))
