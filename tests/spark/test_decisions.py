"""What the model of the store takes for granted: Spark decides by the same truth tables, and makes the same keys."""

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from dolly_batch.spark import decisions
from dolly_batch.spark.decisions import ASKED, KEEP, REQUEST_KEY, TruthTable, miscounted, publishing
from dolly_batch.spark.plan.keys import numbered_key, request_key, row_key
from dolly_batch.spark.plan.manifest import BESIDE
from dolly_batch.spark.plan.row_status import mark_bad_ids
from dolly_batch.spark.publish import published_rows
from dolly_batch.spark.tables.columns import ColumnRef
from dolly_batch.spark.tables.delta_commit import commit
from tests.spark.desk import Desk, questions
from tests.spark.staging_desk import staged
from tests.store_model import keys
from tests.store_model.job import key_rows

FACTS = {
    "asked": ("there", "retried", "full", "resumable", "runs", "too_long"),
    "replaces": ("later", "changed", "newer_there"),
}
TABLES = [("asked", ASKED), *(("replaces", table) for table in decisions._REPLACES.values())]


@pytest.mark.parametrize(("kind", "table"), TABLES)
def test_a_truth_table_is_the_same_for_spark(spark: SparkSession, kind: str, table: TruthTable) -> None:
    names = FACTS[kind]
    rows = [*product((True, False, None) if kind == "replaces" else (True, False), repeat=len(names))]
    schema = T.StructType([T.StructField(name, T.BooleanType()) for name in names])
    decided = table.column(**{name: F.col(name) for name in names}).alias("decided")
    found = spark.createDataFrame(rows, schema).coalesce(1).select(*names, decided).collect()
    assert len(found) == len(rows)
    for row in found:
        *facts, decision = row
        assert decision == table.decide(**dict(zip(names, facts, strict=True))), row


def test_keys_and_counts_are_the_same_for_spark(spark: SparkSession) -> None:
    texts = [None, "", "a", "a:b", "é\U0001f600", "2:ab"]
    rows = [(i, c, n) for i in texts for c in texts for n in (1, 2, 30)]
    frame = spark.createDataFrame(rows, "i string, c string, n int").coalesce(1)
    asked = request_key('{"header": 1}', F.col("i"), F.col("c"))
    id = row_key([ColumnRef(F.col("i"), "i", T.StringType())])
    counts = miscounted(F.length("i"), F.length("c"), F.greatest, F.lit(0))
    for row in frame.select("*", asked, numbered_key(asked, F.col("n")), id, *counts).collect():
        instruction, context, number, request, numbered, key, *differences = row
        assert request == keys.request_key('{"header": 1}', instruction, context)
        assert numbered == keys.numbered_key(request, number)
        assert key == (None if instruction is None else keys.row_key(instruction))
        if instruction is not None and context is not None:
            assert tuple(differences) == miscounted(len(instruction), len(context), max)


def test_rows_of_bad_ids_are_numbered_as_in_the_model(spark: SparkSession) -> None:
    pairs = ["a x", "a x", "a y", " x", " x", "b x", "c x", "c y", "c y"]
    rows = [(id or None, text) for id, text in (pair.split(" ") for pair in pairs)]
    frame = spark.createDataFrame(rows, "id string, text string").select(
        row_key([ColumnRef(F.col("id"), "id", T.StringType())]).alias("row_key"),
        request_key("header", F.col("text"), F.lit(None).cast("string")).alias("request_key"),
        F.lit(None).cast("string").alias("status"),
        F.lit(None).cast("string").alias("error"),
    )
    found = [(row.row_key, row.request_key, row.status or "") for row in mark_bad_ids(frame, []).collect()]
    assert sorted(found) == sorted((*row.key(), row.status) for row in key_rows(list(rows)))
    assert len({row[:2] for row in found}) == len(rows)


@pytest.mark.parametrize("mode", ["merge", "append"])
def test_delta_merges_as_the_truth_table_says(delta_desk: Desk, mode: str) -> None:
    """Each combination of a later attempt, another question and a newer answer, met in one MERGE."""
    delta_desk.document["output"]["mode"] = mode
    delta_desk.put(questions(8))
    work = staged(delta_desk)
    work.publish()
    delta_desk.spark.sql(
        f"""UPDATE delta.`{delta_desk.out}` SET response = 'old',
            attempt = CASE WHEN int(substr(id, 2)) & 1 = 1 THEN 0 ELSE 1 END,
            request_key = CASE WHEN int(substr(id, 2)) & 2 = 2 THEN 'other' ELSE request_key END,
            created_at = created_at + CASE WHEN int(substr(id, 2)) & 4 = 4 THEN INTERVAL 1 DAY
                                           ELSE INTERVAL -1 DAY END"""
    )
    again = replace(work.plan, plan_id="another", retries=True)
    commit(work.target, again, published_rows(work.target, work.folder, work.plan), work.folder.facts(BESIDE))
    found = Counter((row["id"], row["response"] == "old") for row in delta_desk.rows("delta"))
    rule, expected = publishing(mode, retries=True), Counter[tuple[str, bool]]()
    for i in range(8):
        facts = {"later": bool(i & 1), "changed": bool(i & 2), "newer_there": bool(i & 4)}
        is_met = REQUEST_KEY not in rule.keys or not facts["changed"]
        is_old = not is_met or rule.replaces.decide(**facts) == KEEP
        expected.update([(f"r{i:05d}", is_old), *([] if is_met else [(f"r{i:05d}", False)])])
    assert found == expected
