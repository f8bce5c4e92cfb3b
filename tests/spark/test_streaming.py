"""The recipe of docs/operate.md for a stream: each batch goes into the input's table, then the job runs."""

import pytest
from pyspark.sql import DataFrame

from dolly_batch import run_job
from tests.spark.desk import Desk, questions


def answer_what_is_new(desk: Desk) -> list[int]:
    """One availableNow run of the stream; how many rows each batch's job published."""
    spark, published = desk.spark, list[int]()
    job = desk.job(input={"path": str(desk.folder / "instructions"), "format": "parquet"}, output={"mode": "append"})

    def answer(batch: DataFrame, batch_id: int) -> None:
        batch.write.mode("overwrite").parquet(f"{desk.folder}/instructions/batch={batch_id}")
        published.append(run_job(job).num_published_rows)

    arriving = spark.readStream.schema("id string, instruction string, context string").json(
        str(desk.folder / "arriving")
    )
    stream = arriving.writeStream.foreachBatch(answer).option("checkpointLocation", str(desk.folder / "checkpoint"))
    query = stream.trigger(availableNow=True).start()
    query.awaitTermination()
    return published


@pytest.mark.long
def test_a_stream_is_answered_batch_by_batch(desk: Desk) -> None:
    (desk.folder / "arriving").mkdir()
    desk.put(questions(6), "arriving/1.jsonl")
    assert answer_what_is_new(desk) == [6]
    desk.put(questions(4, start=6), "arriving/2.jsonl")
    assert answer_what_is_new(desk) == [4]
    assert answer_what_is_new(desk) == []
    assert sorted(row["id"] for row in desk.rows()) == [row["id"] for row in questions(10)]
