"""A day's rows cost what they are: how much of the output plan, publish and audit read."""

from collections import Counter

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from benchmarks.daily import PATHS_WHOLE, scanned_rows
from dolly_batch.spark.session.conf import session_conf
from dolly_batch.spark.tables.id_range import id_range
from dolly_batch.spark.tables.output import OutputTable
from tests.spark.desk import Desk, asked_again, questions


def num_read(desk: Desk) -> int:
    return sum(scanned_rows(desk.spark, desk.out).values())


@pytest.mark.parametrize(
    "mode", [pytest.param("append", marks=pytest.mark.long), pytest.param("merge", marks=pytest.mark.chaos)]
)
def test_new_rows_read_the_output_once_or_where_their_ids_may_be(delta_desk: Desk, mode: str) -> None:
    delta_desk.put(questions(300))
    delta_desk.run(output={"mode": mode})
    with session_conf(delta_desk.spark, PATHS_WHOLE):
        delta_desk.put(questions(10, start=300))
        before = num_read(delta_desk)
        assert delta_desk.run(output={"mode": mode}).num_published_rows == 10
        after = num_read(delta_desk)
        assert 300 <= after - before <= 1.2 * 300
        # Nothing can be copied from other rows: only such ids are looked for, and statistics exclude the others.
        delta_desk.put(questions(10, start=310))
        report = delta_desk.run(output={"mode": mode, "reuse_answers": False})
        assert report.num_published_rows == 10
        assert num_read(delta_desk) - after <= 10
    assert Counter(row["id"] for row in delta_desk.rows("delta")) == Counter(row["id"] for row in questions(320))


@pytest.mark.chaos
def test_few_rows_find_in_the_output_what_many_would(delta_desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that are there, rows that ask what others have asked, and new ones: by either way the same plan."""
    delta_desk.put(questions(20))
    delta_desk.run()
    rows = [*questions(5, start=3), *asked_again(questions(4, start=10)), *questions(3, start=50)]
    delta_desk.put([*rows, {"id": None, "instruction": "x"}])
    numbers = {}
    for few in (1000, 0):
        monkeypatch.setattr("dolly_batch.spark.plan.planner.FEW_ROWS", few)
        report = delta_desk.run(input={"on_bad_id": "status"}, name=f"few{few}", limits={"max_error_share": 1.0})
        numbers[few] = (report.num_held_rows, report.num_copied_rows, report.num_published_rows)
        delta_desk.spark.sql(f"DELETE FROM delta.`{delta_desk.out}` WHERE id IS NULL OR id >= 'r00050' OR id < 'r'")
    assert numbers[1000] == numbers[0] == (5, 4, 8)


@pytest.fixture
def by_id(desk: Desk) -> OutputTable:
    fields = [T.StructField("id", T.StringType()), T.StructField("day", T.IntegerType())]
    return OutputTable(desk.spark, desk.job(), T.StructType(fields), 2, None, None)


def test_the_range_of_ids_leaves_none_out(spark: SparkSession, by_id: OutputTable) -> None:
    def frame(rows: list[tuple[str | None, int]]) -> DataFrame:
        return spark.createDataFrame(rows, "id string, day int")

    def kept(rows: list[tuple[str | None, int]], ids: DataFrame) -> int:
        condition = id_range(by_id, ids)
        assert condition is not None
        return frame(rows).where(condition).count()

    rows = [("a", 1), ("b", 2), ("b\U0001f600", 3), ("c", 4), (None, 2)]
    assert kept(rows, frame(rows)) == 5
    assert kept(rows, frame([("b", 2), ("c", 3)])) == 2
    assert kept(rows, frame([(None, 2), ("a", 1)])) == 2
    assert kept(rows, frame([])) == 0
    # What is not UTF-8 comes to the driver as something else, so no bound is taken from it.
    broken = frame([("b", 2)]).withColumn("id", F.unhex(F.lit("6161ff")).cast("string"))
    assert kept([("aa\U0001f600", 2), ("c", 2)], broken) == 2
