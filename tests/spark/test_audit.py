"""What the audit and the check before the commit see: tampered answers, rows added or taken away. Never `complete`."""

import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from pyspark.sql import DataFrame

from dolly_batch import Options, Stopped
from dolly_batch.errors import AuditError
from dolly_batch.spark.plan.manifest import COMPLETE, PUBLISHED, Plan
from dolly_batch.spark.status import read_status
from dolly_batch.spark.tables import delta_commit
from dolly_batch.spark.tables.output import OutputTable
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


def test_what_others_do_to_a_delta_table_after_the_commit_is_theirs(delta_desk: Desk) -> None:
    """A row deleted between the commit and the audit is no fault of the plan, and does not come back."""
    work = published(delta_desk)
    Path(work.folder.of(PUBLISHED)).unlink()  # killed before it was noted
    delta_desk.spark.sql(f"DELETE FROM delta.`{delta_desk.out}` WHERE id = 'r00003'")
    assert delta_desk.run().outcome == "complete"
    assert "r00003" not in {row["id"] for row in delta_desk.rows("delta")}


def test_rows_that_a_commit_lost_or_doubled_are_found(delta_desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def plain(output: OutputTable, rows: DataFrame) -> None:
        few = rows.orderBy("id").limit(11)
        few.unionByName(few.limit(3)).write.format("delta").mode("append").save(str(output.path))

    monkeypatch.setattr(delta_commit, "_append", plain)
    delta_desk.put(questions(12))
    error = delta_desk.refused()
    assert isinstance(error, AuditError)
    assert "1 are missing and 3 are repeated" in str(error)
    assert "--abandon" in str(error)
    assert delta_desk.run(Options(abandon=True)).outcome == "abandoned"
    monkeypatch.undo()
    assert delta_desk.run().num_published_rows == 1


def test_rows_that_an_overwrite_carries_over_and_are_gone_stop_it_before_the_commit(delta_desk: Desk) -> None:
    delta_desk.document["output"]["mode"] = "overwrite"
    delta_desk.put(questions(6))
    delta_desk.run()
    delta_desk.put(questions(9))
    staged(delta_desk)
    delta_desk.spark.sql(f"DELETE FROM delta.`{delta_desk.out}` WHERE id < 'r00004'")
    error = delta_desk.refused()
    assert isinstance(error, Stopped)
    assert "4 rows" in str(error)
    assert "--abandon" in str(error)
    assert len(delta_desk.rows("delta")) == 2
    delta_desk.run(Options(abandon=True))
    assert delta_desk.run().outcome == "complete"
    assert len(delta_desk.rows("delta")) == 9


@pytest.mark.chaos
def test_an_older_answer_that_was_to_be_replaced_is_found(delta_desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    delta_desk.document["output"]["mode"] = "merge"
    delta_desk.put(questions(4))
    delta_desk.run()

    def adds_alone(output: OutputTable, plan: Plan, rows: DataFrame) -> None:
        rows.where("id > 'r00003'").write.format("delta").mode("append").save(str(output.path))

    delta_desk.put([{"id": "r00000", "instruction": "Changed.", "context": None}, *questions(5, start=1)])
    with monkeypatch.context() as without_updates:
        without_updates.setattr(delta_commit, "_merge", adds_alone)
        error = delta_desk.refused()
    assert isinstance(error, AuditError)
    assert "of 3 planned rows 1 are missing and 0 are repeated" in str(error)
    delta_desk.run(Options(abandon=True))
    assert delta_desk.run().num_published_rows == 1
    assert {row["id"]: row["response"] for row in delta_desk.rows("delta")}["r00000"] == "Changed."


@pytest.mark.chaos
def test_rows_that_others_add_while_a_plan_runs_are_looked_at_and_later_only_in_full(
    delta_desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of the plan's rows come in by hand, in the moment between its look at the log and its commit."""
    append = delta_commit._append

    def overtaken(output: OutputTable, rows: DataFrame) -> None:
        by_hand = delta_desk.spark.createDataFrame(rows.limit(2).collect(), rows.schema)
        by_hand.write.format("delta").mode("append").save(str(output.path))
        append(output, rows)

    delta_desk.put(questions(4))
    with monkeypatch.context() as late:
        late.setattr(delta_commit, "_append", overtaken)
        error = delta_desk.refused()
    assert "0 are missing and 2 are repeated" in str(error)
    delta_desk.run(Options(abandon=True))
    delta_desk.put(questions(6))
    assert delta_desk.run().outcome == "complete"  # its own two rows are all there
    with pytest.raises(AuditError, match="2 of them repeated"):
        read_status(delta_desk.job(), full=True)


def test_a_parquet_file_copied_into_the_output_is_found_by_a_look_at_the_whole_table(desk: Desk) -> None:
    desk.document["output"]["mode"] = "append"
    published(desk)
    shutil.copytree(next(desk.out.glob("plan_id=*")), desk.out / "plan_id=by_hand")
    assert desk.run().outcome == "complete"  # the plan's own rows are as they should be
    with pytest.raises(AuditError, match="12 of them repeated"):
        read_status(desk.job(), full=True)


@pytest.mark.chaos
def test_rows_that_are_missing_among_the_plans_own_are_looked_for_in_the_whole_table(desk: Desk) -> None:
    desk.document["output"]["mode"] = "append"
    work = published(desk)
    (own,) = desk.out.glob("plan_id=*")
    other = shutil.move(own, desk.out / "plan_id=another")
    assert work.audit().num_rows == 12
    shutil.copytree(other, desk.out / "plan_id=third")
    is_not_complete(desk, work, "0 are missing", "12 are repeated")
