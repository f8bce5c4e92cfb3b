"""Commits repeated, late, overlapping and at once: never a row lost or twice."""

import fnmatch
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyspark.sql import DataFrame

from dolly_batch.errors import AlreadyRunning
from dolly_batch.spark.files import LocalFiles
from dolly_batch.spark.publish import publish, published_rows
from dolly_batch.spark.tables import delta_commit, parquet
from dolly_batch.spark.tables.output import OutputTable
from tests.spark.desk import Desk, questions
from tests.spark.staging_desk import Staged, staged

MANY_WAVES = {"max_shard_rows": 6, "shards_per_slot": 1, "slots": 1}
OUTPUTS = [
    ("parquet", "overwrite"),
    pytest.param("delta", "append", marks=pytest.mark.long),
    pytest.param("parquet", "append", marks=pytest.mark.chaos),
    pytest.param("delta", "overwrite", marks=pytest.mark.chaos),
    pytest.param("delta", "merge", marks=pytest.mark.chaos),
]


@pytest.fixture
def any_desk(request: pytest.FixtureRequest) -> Callable[[str, str], Desk]:
    """A desk whose job writes in the given format and mode; skips where there is no Delta."""

    def make(format: str, mode: str) -> Desk:
        desk: Desk = request.getfixturevalue("delta_desk" if format == "delta" else "desk")
        desk.document["output"] |= {"format": format, "mode": mode}
        return desk

    return make


def ids(desk: Desk) -> Counter[str]:
    return Counter(row["id"] for row in desk.rows(desk.document["output"]["format"]))


def expected(rows: list[dict[str, Any]]) -> Counter[str]:
    return Counter(row["id"] for row in rows)


@pytest.mark.parametrize(("format", "mode"), OUTPUTS)
def test_waves_finished_in_reverse_and_a_plan_published_three_times(
    any_desk: Callable[[str, str], Desk], format: str, mode: str
) -> None:
    desk = any_desk(format, mode)
    desk.put(questions(4))
    desk.run()
    desk.put(questions(20))
    work = staged(desk, reverse=True, plan=MANY_WAVES)
    assert len(work.plan.waves) > 2
    work.publish()
    first = sorted(map(repr, desk.rows(format)))
    assert ids(desk) == expected(questions(20))
    for _ in range(2):
        work.publish()
        assert sorted(map(repr, desk.rows(format))) == first
    assert desk.run().outcome == "complete"
    assert ids(desk) == expected(questions(20))


@pytest.mark.chaos
@pytest.mark.parametrize("mode", ["merge", pytest.param("append", marks=pytest.mark.chaos)])
def test_plans_with_overlapping_keys_are_published_one_after_another(delta_desk: Desk, mode: str) -> None:
    one, two = overlapping(delta_desk, mode)
    one.publish()
    two.publish()
    assert ids(delta_desk) == expected(questions(15))
    assert (one.audit().num_rows, two.audit().num_rows) == (10, 10)


@pytest.mark.parametrize("mode", ["append", pytest.param("merge", marks=pytest.mark.chaos)])
def test_plans_with_overlapping_keys_are_published_at_once(delta_desk: Desk, mode: str) -> None:
    one, two = overlapping(delta_desk, mode)
    at_once(one.publish, two.publish, one.publish)
    assert ids(delta_desk) == expected(questions(15))
    assert (one.audit().num_rows, two.audit().num_rows) == (10, 10)


@pytest.mark.chaos
def test_a_plan_overtaken_between_its_look_and_its_commit_looks_again(
    delta_desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = overlapping(delta_desk, "append")
    append, late = delta_commit._append, [two.publish]

    def overtaken(output: OutputTable, rows: DataFrame) -> None:
        if late:
            late.pop()()
        append(output, rows)

    monkeypatch.setattr(delta_commit, "_append", overtaken)
    one.publish()
    assert ids(delta_desk) == expected(questions(15))
    assert (one.audit().num_rows, two.audit().num_rows) == (10, 10)
    # What adds no rows stops no append: files put together, rows deleted.
    delta_desk.put(questions(3, start=20))
    three = staged(delta_desk, name="three")
    table = f"delta.`{delta_desk.out}`"
    delta_desk.spark.sql(f"OPTIMIZE {table}")
    delta_desk.spark.sql(f"DELETE FROM {table} WHERE id < 'r00003'")
    three.publish()
    history = delta_desk.spark.sql(f"DESCRIBE HISTORY {table}").select("version", "operation").orderBy("version")
    assert [row[1] for row in history.collect()][1:] == ["WRITE", "MERGE", "OPTIMIZE", "DELETE", "WRITE"]
    assert three.audit().num_rows == 3
    assert ids(delta_desk) == expected([*questions(12, start=3), *questions(3, start=20)])


def test_jobs_with_overlapping_keys_share_a_parquet_output(desk: Desk) -> None:
    one, two = overlapping(desk, "append")
    one.publish()
    two.publish()
    assert ids(desk) == expected(questions(15))
    assert (one.audit().num_rows, two.audit().num_rows) == (10, 10)
    # A third one was suspended just before its rename, while another took the lock and published.
    desk.put(questions(8, start=12))
    three = staged(desk, name="three")
    desk.put(questions(10, start=14))
    four = staged(desk, name="four")

    def meanwhile() -> None:
        (desk.out / parquet.LOCK).unlink()
        four.publish()

    files = Interleaved("*/out/plan_id=*", meanwhile)
    with pytest.raises(AlreadyRunning):
        publish(replace(three.target, files=files), three.folder, three.plan)
    three.publish()
    assert ids(desk) == expected(questions(24))


def overlapping(desk: Desk, mode: str) -> tuple[Staged, Staged]:
    """Two jobs into one output, ten rows each, five of them the same; both planned before either is published."""
    desk.document["output"]["mode"] = mode
    desk.put(questions(10))
    one = staged(desk, name="one")
    desk.put(questions(10, start=5))
    return one, staged(desk, name="two")


def at_once(*calls: Callable[[], None]) -> None:
    with ThreadPoolExecutor(len(calls)) as pool:
        for future in [pool.submit(call) for call in calls]:
            future.result()


@pytest.mark.chaos
def test_one_parquet_plan_published_at_once_by_two_starts(desk: Desk) -> None:
    """As when a start was suspended for long, and its JVM went on writing while another took over."""
    desk.document["output"]["mode"] = "append"
    desk.put(questions(40))
    work = staged(desk)
    at_once(work.publish, work.publish)
    assert ids(desk) == expected(questions(40))
    assert desk.run().outcome == "complete"
    assert [path.name for path in desk.out.iterdir()] == [f"plan_id={work.plan.plan_id}"]


@pytest.mark.chaos
def test_a_late_overwrite_does_not_bring_back_the_old_table(delta_desk: Desk) -> None:
    delta_desk.document["output"]["mode"] = "overwrite"
    delta_desk.put(questions(5))
    old = staged(delta_desk, name="one")
    old.publish()
    delta_desk.put(questions(9))
    staged(delta_desk, name="two").publish()
    old.publish()
    assert ids(delta_desk) == expected(questions(9))


def test_an_old_plan_that_commits_late_leaves_newer_answers(delta_desk: Desk) -> None:
    """Killed after its commit and before it noted that, it commits again when it is resumed."""
    delta_desk.document["output"]["mode"] = "merge"
    delta_desk.put(questions(3))
    old = staged(delta_desk, name="one")
    old.publish()
    delta_desk.put([{**questions(1)[0], "instruction": "Say what is new."}])
    staged(delta_desk, name="two").publish()
    old.publish()
    found = {row["id"]: row["response"] for row in delta_desk.rows("delta")}
    assert found["r00000"].startswith("Say what is new.")
    assert len(found) == 3


@pytest.mark.chaos
def test_a_plan_made_again_after_its_rows_went_from_the_table_is_published_again(delta_desk: Desk) -> None:
    delta_desk.document["output"]["mode"] = "overwrite"
    delta_desk.put(questions(5))
    delta_desk.run()
    delta_desk.spark.sql(f"DELETE FROM delta.`{delta_desk.out}`")
    assert delta_desk.run().outcome == "complete"
    assert ids(delta_desk) == expected(questions(5))


@pytest.mark.parametrize("seen", ["neither", pytest.param("new", marks=pytest.mark.chaos)])
def test_a_swap_cut_off_between_its_renames_is_finished_by_the_next_start(desk: Desk, seen: str) -> None:
    """Overwriting Parquet moves the old folder away, then the new one in; a crash may fall between."""
    desk.put(questions(5))
    desk.run()
    shutil.copytree(desk.out, desk.folder / "old")
    desk.put(questions(9))
    work = staged(desk)
    assert work.plan.num_carried_over == 5
    work.publish()
    swap = {key: Path(value) for key, value in work.folder.facts("swapping.json").items()}
    shutil.move(desk.folder / "old", swap["old"])
    if seen == "neither":
        shutil.move(desk.out, swap["fresh"])
    assert desk.run().outcome == "complete"
    assert ids(desk) == expected(questions(9))
    assert not [path for path in desk.folder.iterdir() if path.name.startswith(".out")]


@pytest.mark.parametrize("mode", ["append", pytest.param("overwrite", marks=pytest.mark.chaos)])
def test_files_of_a_delta_table_whose_first_commit_never_came_are_no_table(delta_desk: Desk, mode: str) -> None:
    """What kill -9 leaves between the first files of a new table and the commit that would have named them."""
    delta_desk.document["output"]["mode"] = mode
    delta_desk.put(questions(5))
    work = staged(delta_desk)
    rows = published_rows(work.target, work.folder, work.plan)
    rows.write.parquet(str(delta_desk.out))
    (delta_desk.out / "_SUCCESS").unlink()
    (delta_desk.out / "_delta_log" / "_staged_commits").mkdir(parents=True)
    assert delta_desk.run().outcome == "complete"
    assert ids(delta_desk) == expected(questions(5))


class Interleaved(LocalFiles):
    """The files of a start that is suspended just before a rename, while another start publishes the same plan."""

    def __init__(self, pattern: str, other: Callable[[], None]) -> None:
        self.pattern = pattern
        self.others = [other]

    def rename(self, source: str, target: str) -> bool:
        if fnmatch.fnmatch(target, self.pattern) and self.others:
            self.others.pop()()
        return super().rename(source, target)


@pytest.mark.parametrize(
    ("mode", "step"),
    [
        pytest.param("overwrite", "*/.out.*.old", marks=pytest.mark.chaos),
        pytest.param("overwrite", "*/out", marks=pytest.mark.chaos),
        pytest.param("append", "*/out/plan_id=*", marks=pytest.mark.chaos),
    ],
)
def test_a_start_suspended_before_a_rename_cannot_undo_what_another_published(desk: Desk, mode: str, step: str) -> None:
    desk.document["output"]["mode"] = mode
    desk.put(questions(5))
    desk.run()
    desk.put(questions(9))
    work = staged(desk)

    def another() -> None:
        (desk.out / parquet.LOCK).unlink(missing_ok=True)  # whoever takes this start for dead
        work.publish()

    suspended = Interleaved(step, another)
    publish(replace(work.target, files=suspended), work.folder, work.plan)
    assert not suspended.others
    assert ids(desk) == expected(questions(9))
    assert desk.run().outcome == "complete"
    assert not [path for path in desk.folder.iterdir() if path.name.startswith(".out")]
