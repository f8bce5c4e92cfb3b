"""Schedules of the store's model, played again by the package itself, on a real Delta table."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from deltalake import DeltaTable

from dolly_batch import DollyBatchError, JobConfig, Options, run_job
from dolly_batch.errors import Stopped
from dolly_batch.spark import run
from dolly_batch.spark.files import LocalFiles
from dolly_batch.spark.generate import waves
from dolly_batch.spark.generate.shard import answer_shard
from dolly_batch.spark.session.session import own_session
from dolly_batch.spark.tables import delta, delta_commit
from tests.spark.desk import Desk
from tests.store_model.disk import View
from tests.store_model.job import Input
from tests.store_model.schedules import FAULT, OF_STARTS, Schedule, Seen, Step, rows_seen
from tests.store_model.starts import TO_THE_END, Clock, Killed, Start, landmark, locks_of
from tests.store_model.tables import Row

# What of the model is not played again:
# - outputs of Parquet, whose commit is the package's own in the model too;
# - which rows share a wave, where there are several: a matter of hashes;
# - a stop between two calls of which only one side knows, such as the writing of two parts of a snapshot.
OUTCOMES = {"nothing_to_do": "nothing to do"}


def failing(answer: Any, fails: bool) -> Any:
    """An `answer_shard` by which rows that say so fail. It goes to the workers by value: they know no tests."""

    def answer_or_fail(task: Any, frames: Any) -> Any:
        for frame in answer(task, frames):
            found = frame["response"].str.startswith("fails") & fails
            yield frame.assign(
                response=frame["response"].mask(found), status=frame["status"].mask(found, "model_error")
            )

    return answer_or_fail


class RealStart(Start):
    """A start of the real command, which counts and stops at landmarks alone."""

    at_landmarks = True
    outcome = ""

    def pause(self, operation: str, path: str) -> None:
        if self.is_killed or landmark(operation, path):
            super().pause(operation, path)


class RealWorld:
    """A desk with a Delta table, and the starts of its jobs, by number."""

    def __init__(self, desk: Desk, schedule: Schedule) -> None:
        self.desk, self.schedule = desk, schedule
        self.clock = Clock()
        self.starts: list[RealStart] = []
        self.fails, self.reply_is_lost = True, False

    @property
    def current(self) -> RealStart:
        assert isinstance(self.clock.current, RealStart)
        return self.clock.current

    def _job(self, name: str) -> JobConfig:
        mode = self.schedule.mode
        schema = "id STRING, text STRING, instruction STRING"
        return self.desk.job(
            name=name,
            input={"context": None, "schema": schema, "on_bad_id": "refuse" if mode == "merge" else "status"},
            output={"format": "delta", "mode": mode, "keep": ["text"]},
            limits={"max_error_share": 1.0},
            plan={"max_shard_rows": 100, "slots": 1, "waves_in_flight": 1},
            work={"keep_days": self.schedule.keep_days},
        )

    def start(self, name: str, host: str, retry: bool, abandons: bool) -> None:
        def work(start: Start) -> None:
            assert isinstance(start, RealStart)
            report = run_job(self._job(name), Options(retry=("model_error",) if retry else (), abandon=abandons))
            start.outcome = OUTCOMES.get(report.outcome, report.outcome)

        self.starts.append(RealStart(self.clock, LocalFiles(), host, work))

    def advance(self, number: int, to_the_end: bool, num_landmarks: int) -> None:
        start = self.starts[number]
        start.is_suspended = False
        start.advance(TO_THE_END if to_the_end else num_landmarks - len(start.passed))
        if start.fault is not None:
            start.outcome = FAULT
            if not isinstance(start.fault, (DollyBatchError, Killed)):
                raise start.fault

    def suspend(self, number: int) -> None:
        self.starts[number].is_suspended = True

    def kill(self, number: int) -> None:
        self.starts[number].kill()

    def beat_late(self, number: int) -> None:
        self.starts[number].beat(late=True)

    def remove_locks(self, number: int) -> None:
        for held in self.starts[number].locks:
            LocalFiles().delete(held._path)

    def pass_time(self, seconds: float) -> None:
        self.clock.pass_(seconds)

    def put(self, rows: Input) -> None:
        self.desk.put([{"id": id, "text": text, "instruction": f"{text} of {id}"} for id, text in rows])

    def lose_a_reply(self, is_lost: bool) -> None:
        self.reply_is_lost = is_lost

    def break_or_mend_the_model(self) -> None:
        self.fails = not self.fails
        waves.answer_shard = failing(answer_shard, self.fails)

    def delete(self, id: str | None) -> None:
        value = "NULL" if id is None else f"'{id}'"
        self.desk.spark.sql(f"DELETE FROM delta.`{self.desk.out}` WHERE id <=> {value}")

    def rows(self) -> list[Row]:
        """The output; each answer is its own row's."""
        if not any((self.desk.out / "_delta_log").glob("*.json")):
            return []
        found = DeltaTable(str(self.desk.out)).to_pyarrow_table().to_pylist()
        for row in found:
            assert row["response"] == (f"{row['text']} of {row['id']}" if row["status"] == "ok" else None), row
        names = ("id", "text", "status", "attempt", "plan_id", "created_at")
        return [Row(row_key="", request_key="", **{name: row[name] for name in names}) for row in found]

    def play(self, step: Step) -> Seen:
        """Do what the step says, up to the same landmark, and see what the model has seen."""
        arguments = step.arguments
        if step.what == "advance":
            arguments = (*arguments, len(step.seen.passed))
        getattr(self, step.what)(*arguments)
        seen = Seen(rows_seen(self.rows()))
        if step.what not in OF_STARTS:
            return seen
        start = self.starts[arguments[0]]
        stands_at = "" if start.is_over else start.stands_at
        return Seen(seen.rows, tuple(start.passed), stands_at, start.outcome if step.what == "advance" else "")


@contextmanager
def stepped(world: RealWorld, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have starts of the command in this process stop and end as the world says, each in a session of its own."""
    see, commit, take_turns, files_for = delta.see, delta.commit, delta_commit.take_turns, run.files_for

    def stop(at: str) -> None:
        world.current.pause("exists", f"/out/_delta_log/{at}")

    def see_and_stop(output: Any) -> Any:
        seen = see(output)
        stop("look")
        return seen

    def stop_and_commit(*arguments: Any) -> None:
        stop("commit")
        commit(*arguments)
        lost, world.reply_is_lost = world.reply_is_lost, False
        if lost:
            raise Stopped("the reply of a commit was lost")

    def turns_with_a_stop(look: Any, write: Any, tries: int) -> bool:
        def stop_and_write(log: Any) -> None:
            stop("turn")
            write(log)

        return take_turns(look, stop_and_write, tries)

    def stepped_files(spark: Any, path: str) -> tuple[Any, str]:
        files, absolute = files_for(spark, path)
        return View(files, world.current.pause), absolute

    patch.setattr(run, "open_session", lambda job: own_session(world.desk.spark))
    patch.setattr(run, "files_for", stepped_files)
    patch.setattr(delta, "see", see_and_stop)
    patch.setattr(delta, "commit", stop_and_commit)
    patch.setattr(delta_commit, "take_turns", turns_with_a_stop)
    patch.setattr(waves, "answer_shard", failing(answer_shard, world.fails))
    with locks_of(world.clock, patch):
        yield


def replay(desk: Desk, schedule: Schedule) -> None:
    """Play a schedule on a desk; after each step all is as it was in the model."""
    world = RealWorld(desk, schedule)
    with pytest.MonkeyPatch.context() as patch, stepped(world, patch):
        try:
            for number, step in enumerate(schedule.steps):
                seen = world.play(step)
                faults = [start.fault for start in world.starts]
                assert seen == step.seen, f"{seen}, and the model {step.seen}, at step {number} of {schedule}; {faults}"
        finally:
            for start in world.starts:
                start.kill()
