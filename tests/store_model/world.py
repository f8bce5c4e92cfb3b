"""The world that schedules play in: inputs, outputs, starts and time; and whether what starts say is so.

Rows are known by id and text here, whatever keys the package gives them.
"""

from collections import Counter

from dolly_batch.errors import DollyBatchError
from dolly_batch.spark.plan.manifest import PlanFolder
from tests.store_model.disk import Disk
from tests.store_model.job import WORK, Input, Running, Said
from tests.store_model.starts import Clock, Killed, Start
from tests.store_model.tables import DeltaTable, Output, Rows


class World:
    """Inputs, outputs, starts and time; and what was seen of them from outside."""

    wave_rows = 2

    def __init__(self, format: str, mode: str, jobs: list[str], keep_days: float) -> None:
        self.format, self.mode, self.jobs, self.keep_days = format, mode, jobs, keep_days
        self.disk, self.delta, self.clock = Disk(), DeltaTable(), Clock()
        self.input: Input = []
        self.fails, self.reply_is_lost = True, False
        self.planned: dict[str, Said] = {}
        self.at_most: Counter[tuple[str | None, str]] = Counter()
        self.deleted: list[tuple[str, tuple[str | None, str]]] = []
        self.running: dict[Start, Running] = {}
        self.violation: AssertionError | None = None

    def output(self, files: Disk) -> Output:
        return Output(self.format, self.mode, files, self.delta)  # type: ignore[arg-type]

    def start(self, name: str, host: str = "here", retry: bool = False, abandons: bool = False) -> Start:
        def work(start: Start) -> None:
            running.output = self.output(start.files)  # type: ignore[arg-type]
            running(start)

        running = Running(
            name=name,
            output=self.output(self.disk),
            stamp=self.clock.stamp,
            read_input=self._read_input,
            answer=lambda text: "model_error" if text == "fails" and self.fails else "ok",
            loses_reply=self._loses_reply,
            planned=self.planned,
            keep_days=self.keep_days,
            say=self.hear,
            retry=retry,
            abandons=abandons,
            wave_rows=self.wave_rows,
        )
        start = Start(self.clock, self.disk, host, work)
        self.running[start] = running
        return start

    def _read_input(self) -> Input:
        self.at_most |= Counter(self.input)
        return list(self.input)

    def _loses_reply(self) -> bool:
        lost, self.reply_is_lost = self.reply_is_lost, False
        return lost

    def advance(self, start: Start, num: int) -> None:
        """Let a start, suspended or not, do so many operations."""
        start.is_suspended = False
        start.advance(num)
        if self.violation is not None:
            raise self.violation
        if start.is_over:
            self.ended(start)

    def ended(self, start: Start) -> None:
        """Forget a start; what ends one must have a name, or be a file that others have deleted."""
        self.running.pop(start, None)
        self.clock.starts = [other for other in self.clock.starts if other is not start]
        if not isinstance(start.fault, (DollyBatchError, FileNotFoundError, Killed, type(None))):
            raise start.fault

    def suspend(self, start: Start) -> None:
        start.is_suspended = True

    def kill(self, start: Start) -> None:
        start.kill()
        self.ended(start)

    def beat_late(self, start: Start) -> None:
        start.beat(late=True)

    def remove_locks(self, start: Start) -> None:
        """What somebody does who takes a start for dead."""
        for held in start.locks:
            self.disk.delete(held._path)

    def pass_time(self, seconds: float) -> None:
        self.clock.pass_(seconds)

    def put(self, rows: Input) -> None:
        """Have these rows be the input from now on."""
        self.input = rows

    def lose_a_reply(self, is_lost: bool = True) -> None:
        """Have the reply of the next commit be lost, or of none."""
        self.reply_is_lost = is_lost

    def break_or_mend_the_model(self) -> None:
        self.fails = not self.fails

    def delete(self, id: str | None) -> None:
        """Delete the rows of an id from a Delta table."""
        rows, when = self.delta.rows or Rows(), self.clock.stamp()
        gone = [row for row in rows if row.id == id]
        self.deleted += [(when, (row.id, row.text)) for row in gone]
        self.delta.versions.append(("DELETE", Rows(row for row in rows if row not in gone)))

    def hear(self, said: Said) -> None:
        """Check what a start says, at the moment at which it does."""
        try:
            self.check(said)
        except AssertionError as violation:
            self.violation = violation

    def _is_open(self, plan_id: str) -> bool:
        """Whether a plan is still at work: what it has added so far, it may take back."""
        return PlanFolder(self.disk, f"{WORK}/{plan_id}").is_open

    def rows(self) -> Rows:
        return self.output(self.disk).read() or Rows()

    def check(self, said: Said) -> None:
        """What a start has said is so: each row of the input that it read is there once, and none is older."""
        rows = [row for row in self.rows() if not self._is_open(row.plan_id)]
        found, wanted = Counter((row.id, row.text) for row in self.rows()), Counter(said.input)
        gone = Counter(key for when, key in self.deleted if when > said.planned_at)
        if self.mode == "append":
            for key, count in wanted.items():
                assert found[key] + gone[key] >= count, f"{key} is missing"
            for key, count in Counter((row.id, row.text) for row in rows).items():
                assert count <= self.at_most[key], f"{key} is there {count} times"
        elif self.mode == "merge":
            self._check_merged(said, gone)
        elif max(*self.delta.transactions.values(), *(row.created_at for row in rows), "", "") <= said.planned_at:
            lost = wanted - found - gone
            assert not lost, f"{lost} is missing"
            assert not found - wanted, f"{found - wanted} is too much"

    def _check_merged(self, said: Said, gone: Counter[tuple[str | None, str]]) -> None:
        by_id = {row.id: row for row in self.rows()}
        assert len(by_id) == len(self.rows()), "an id is there twice"
        for id, text in said.input:
            if id not in by_id:
                assert any(key[0] == id for key in gone), f"{id} is missing"
                continue
            row, newest = by_id[id], self._newest_of(id)
            assert row.created_at >= newest, f"{id} has an older answer than it had"
            assert row.text == text or row.created_at > said.planned_at, f"{id} has an old answer"

    def _newest_of(self, id: str | None) -> str:
        """When the newest answer was made that the table has had for an id, since the id was last deleted."""
        newest = ""
        for _, rows in self.delta.versions:
            made = [row.created_at for row in rows if row.id == id]
            newest = max(newest, *made) if made else ""
        return newest
