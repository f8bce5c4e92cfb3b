"""What the audit and the check before the commit see: tampered answers, rows added or taken away. Never `complete`."""

import shutil
from collections import Counter
from pathlib import Path

import pandas as pd

from dolly_batch.errors import AuditError
from dolly_batch.spark.plan.manifest import COMPLETE, PUBLISHED
from tests.spark.desk import Desk, questions
from tests.spark.staging_desk import Staged, staged

MANY_WAVES = {"max_shard_rows": 6, "shards_per_slot": 1, "slots": 1}


def wave_file(work: Staged, wave: int) -> Path:
    return next(Path(work.folder.staged(wave)).glob("*.parquet"))


def remove_a_file(work: Staged) -> None:
    wave_file(work, 1).unlink()


def double_a_row(work: Staged) -> None:
    shutil.copy(rewrite(work, slice(0, 1)), wave_file(work, 1).with_name("part-extra.parquet"))


def put_a_row_in_the_place_of_another(work: Staged) -> None:
    """As many rows as planned, and yet one is missing and one is there twice."""
    file = wave_file(work, 1)
    rows = pd.read_parquet(file)
    shutil.move(rewrite(work, [0, *range(len(rows) - 1)]), file)
    file.with_name(f".{file.name}.crc").unlink(missing_ok=True)


def rewrite(work: Staged, rows: slice | list[int]) -> Path:
    """Some rows of a staged file, as a file of the same types."""
    file = wave_file(work, 1)
    scratch = Path(work.folder.of("scratch"))
    shutil.rmtree(scratch, ignore_errors=True)
    frame = work.target.spark.read.parquet(str(file))
    found = frame.collect()
    chosen = found[rows] if isinstance(rows, slice) else [found[row] for row in rows]
    work.target.spark.createDataFrame(chosen, frame.schema).coalesce(1).write.parquet(str(scratch))
    return next(scratch.glob("*.parquet"))


def test_staged_answers_that_are_not_the_planned_rows_are_never_published(desk: Desk) -> None:
    desk.put(questions(20))
    work = staged(desk, plan=MANY_WAVES)
    intact = Path(work.folder.of("intact"))
    shutil.copytree(work.folder.staged(1), intact)
    for tamper in (remove_a_file, double_a_row, put_a_row_in_the_place_of_another):
        tamper(work)
        error = desk.refused()
        assert isinstance(error, AuditError), tamper
        assert error.exit_code == 5
        assert "wave=1" in str(error)
        assert not desk.out.exists()
        assert not work.folder.has(COMPLETE)
        shutil.rmtree(work.folder.staged(1))
        shutil.copytree(intact, work.folder.staged(1))
    shutil.rmtree(work.folder.staged(1))  # what the message says to do
    assert desk.run().outcome == "complete"
    assert Counter(row["id"] for row in desk.rows()) == Counter(row["id"] for row in questions(20))


def test_a_staged_wave_that_is_gone_is_answered_again(desk: Desk) -> None:
    desk.put(questions(20))
    work = staged(desk, plan=MANY_WAVES)
    shutil.rmtree(work.folder.staged(0))
    assert desk.run().outcome == "complete"
    assert Counter(row["id"] for row in desk.rows()) == Counter(row["id"] for row in questions(20))


def published(desk: Desk) -> Staged:
    """A plan stopped between its commit and its audit."""
    desk.put(questions(12))
    work = staged(desk)
    work.publish()
    work.folder.mark(PUBLISHED, {})
    assert work.audit().num_rows == 12
    return work


def is_not_complete(desk: Desk, work: Staged, *said: str) -> None:
    error = desk.refused()
    assert isinstance(error, AuditError)
    assert error.exit_code == 5
    assert all(part in str(error) for part in said)
    assert not work.folder.has(COMPLETE)


def test_rows_deleted_from_the_delta_table_and_doubled_in_it_are_found(delta_desk: Desk) -> None:
    work = published(delta_desk)
    delta_desk.spark.sql(f"DELETE FROM delta.`{delta_desk.out}` WHERE id = 'r00003'")
    is_not_complete(delta_desk, work, "1 are missing", "0 are repeated")
    table = delta_desk.spark.read.format("delta").load(str(delta_desk.out))
    table.limit(3).write.format("delta").mode("append").save(str(delta_desk.out))
    is_not_complete(delta_desk, work, "1 are missing", "3 are repeated")


def test_a_parquet_file_copied_into_the_output_is_found(desk: Desk) -> None:
    desk.document["output"]["mode"] = "append"
    work = published(desk)
    shutil.copytree(next(desk.out.glob("plan_id=*")), desk.out / "plan_id=by_hand")
    is_not_complete(desk, work, "0 are missing", "12 are repeated")
