"""Schedules of a job's life over a model of the store: whatever is stopped, lost, late or twice, two sentences hold.

No run says that it is complete while a row of its input is missing, twice or old in the output. No state of the work
folder stops a job for ever: some command always gets out.

The machine knows rows by id and text alone, and the package by what its starts say.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import ClassVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from dolly_batch.errors import AlreadyRunning
from dolly_batch.spark.plan import manifest
from tests.store_model.job import Input
from tests.store_model.starts import TO_THE_END, Start, locks_of
from tests.store_model.tables import Rows, parquet_of_lists
from tests.store_model.world import World

FORMATS = [
    ("delta", "append"),
    ("delta", "merge"),
    ("delta", "overwrite"),
    ("parquet", "append"),
    ("parquet", "overwrite"),
]
IDS = st.sampled_from(["a", "b", "c", "d", None])
TEXTS = st.sampled_from(["one", "two", "fails"])
Edit = tuple[str, int, str | None, str]
EDITS = st.tuples(st.sampled_from(["add", "repeat", "change", "remove"]), st.integers(0, 7), IDS, TEXTS)
JOBS = ["first", "second"]
NUM = st.integers(0, 70)
"""File operations that a start does before it is left alone; a whole run of a few rows takes 50 to 70."""


class StoreMachine(RuleBasedStateMachine):
    """A schedule: what may happen to jobs, in any order."""

    formats: ClassVar = FORMATS
    """Formats and modes of the output that schedules begin with."""

    @staticmethod
    def without_guard(patch: pytest.MonkeyPatch) -> None:
        """Switch a guard off, for the inverse tests."""

    make_world: ClassVar[Callable[..., World]] = World

    @initialize(
        which=st.integers(0, len(FORMATS) - 1),
        second=st.booleans(),
        keep_days=st.sampled_from([0.0, 1e5]),
        rows=st.lists(st.tuples(st.sampled_from("abcde"), TEXTS), max_size=5, unique_by=lambda row: row[0]),
    )
    def begin(self, which: int, second: bool, keep_days: float, rows: Input) -> None:
        format, mode = self.formats[which % len(self.formats)]
        # Two jobs that overwrite one Parquet folder are one fault of whoever set them up.
        jobs = JOBS if second and (format, mode) != ("parquet", "overwrite") else JOBS[:1]
        self.world = self.make_world(format, mode, jobs, keep_days)
        self.world.put(list(rows))
        self.stack, patch = ExitStack(), pytest.MonkeyPatch()
        self.stack.callback(patch.undo)
        self.stack.enter_context(locks_of(self.world.clock, patch))
        self.stack.enter_context(parquet_of_lists(patch))
        patch.setattr(manifest, "say", lambda text: None)
        self.without_guard(patch)

    @property
    def live(self) -> list[Start]:
        return list(self.world.running)

    def _chosen(self, number: int) -> Start:
        return self.live[number % len(self.live)]

    def _job(self, number: int) -> str:
        return self.world.jobs[number % len(self.world.jobs)]

    @rule(job=st.integers(0, 1))
    def run_to_the_end(self, job: int) -> None:
        self.world.advance(self.world.start(self._job(job)), TO_THE_END)

    @rule(job=st.integers(0, 1), host=st.sampled_from(["here", "there"]), num=NUM)
    def start(self, job: int, host: str, num: int) -> None:
        if len(self.live) < 3:
            self.world.advance(self.world.start(self._job(job), host), num)

    @rule(job=st.integers(0, 1), num=NUM, edit=EDITS, ends=st.booleans())
    def overtaken_by_its_like(self, job: int, num: int, edit: Edit, ends: bool) -> None:
        """A start is suspended on its way; the input changes, and another start of the job ends first."""
        self._overtaken(job, job, num, edit, ends)

    @precondition(lambda self: len(self.world.jobs) == 2)
    @rule(job=st.integers(0, 1), num=NUM, edit=EDITS, ends=st.booleans())
    def overtaken_by_the_other_job(self, job: int, num: int, edit: Edit, ends: bool) -> None:
        self._overtaken(job, job + 1, num, edit, ends)

    def _overtaken(self, job: int, other: int, num: int, edit: Edit, ends: bool) -> None:
        start = self.world.start(self._job(job), "there")
        self.world.advance(start, num)
        self.world.suspend(start)
        self.edit(edit)
        self.run_to_the_end(other)
        if ends and not start.is_over:
            self.world.advance(start, TO_THE_END)

    @precondition(lambda self: self.world.format == "delta")
    @rule(job=st.integers(0, 1), num=NUM)
    def start_to_retry(self, job: int, num: int) -> None:
        if len(self.live) < 3:
            self.world.advance(self.world.start(self._job(job), retry=True), num)

    @rule(job=st.integers(0, 1))
    def abandon(self, job: int) -> None:
        self.world.advance(self.world.start(self._job(job), abandons=True), TO_THE_END)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 2), num=st.integers(1, 40))
    def go_on(self, which: int, num: int) -> None:
        self.world.advance(self._chosen(which), num)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 2))
    def go_on_to_the_end(self, which: int) -> None:
        self.world.advance(self._chosen(which), TO_THE_END)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 2))
    def kill(self, which: int) -> None:
        self.world.kill(self._chosen(which))

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 2), someone_removes_its_locks=st.booleans())
    def suspend(self, which: int, someone_removes_its_locks: bool) -> None:
        start = self._chosen(which)
        self.world.suspend(start)
        self.world.pass_time(20)
        if someone_removes_its_locks:
            self.world.remove_locks(start)

    @precondition(lambda self: any(start.is_suspended for start in self.live))
    @rule(which=st.integers(0, 2))
    def beat_late(self, which: int) -> None:
        self.world.beat_late(self._chosen(which))

    @rule(edit=EDITS)
    def edit(self, edit: Edit) -> None:
        """The input gets a row, the same row again, another question for one, or one row less."""
        kind, which, id, text = edit
        rows = list(self.world.input)
        if kind == "add" or not rows:
            self._add(rows, id, text)
        elif kind == "repeat":
            self._add(rows, *rows[which % len(rows)])
        elif kind == "change":
            rows[which % len(rows)] = (rows[which % len(rows)][0], text)
        else:
            del rows[which % len(rows)]
        self.world.put(rows)

    def _add(self, rows: Input, id: str | None, text: str) -> None:
        is_bad = id is None or any(id == other for other, _ in rows)
        if len(rows) < 8 and not (is_bad and self.world.mode == "merge"):
            rows.append((id, text))

    @rule(is_lost=st.booleans())
    def lose_a_reply_or_mend_the_model(self, is_lost: bool) -> None:
        if is_lost:
            self.world.lose_a_reply()
        else:
            self.world.break_or_mend_the_model()

    @precondition(lambda self: self.world.delta.rows)
    @rule(which=st.integers(0, 7))
    def delete_from_the_output(self, which: int) -> None:
        rows = self.world.delta.rows or Rows()
        self.world.delete(rows[which % len(rows)].id)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            for start in self.live:
                self.world.kill(start)
            for job in self.world.jobs:
                self._finish(job)
        finally:
            for start in self.live:
                start.kill()
            self.stack.close()

    def _finish(self, job: str) -> None:
        """The same command ends the job in the end; or `--abandon` does, where it says so."""
        said: list[str] = []
        self.world.lose_a_reply(False)
        for _ in range(8):
            start = self.world.start(job)
            self.world.advance(start, TO_THE_END)
            if start.fault is None:
                return
            said.append(f"{type(start.fault).__name__}: {start.fault}")
            if "--abandon" in said[-1]:
                self.world.advance(self.world.start(job, abandons=True), TO_THE_END)
            elif isinstance(start.fault, AlreadyRunning):
                self.world.pass_time(20)
        raise AssertionError(f"{job} cannot be finished: {said}; there are {sorted(self.world.disk.files)}")
