"""Schedules that the machine has chosen, with what the model saw after each step: to be played again elsewhere.

A start that is stopped stops at a landmark, a call that the model and Spark have in common.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from dolly_batch.spark.plan import manifest
from tests.store_model.job import Input
from tests.store_model.machine import StoreMachine
from tests.store_model.starts import TO_THE_END, Start, locks_of
from tests.store_model.tables import Row
from tests.store_model.world import World

FAULT = "fault"
OF_STARTS = ("advance", "suspend", "kill", "beat_late", "remove_locks")


@dataclass(frozen=True)
class Seen:
    """What is to be seen after a step: the output's rows, and of a start what it has passed, where it stands or how it
    has ended."""

    rows: list[tuple[str, ...]]
    passed: tuple[str, ...] = ()
    stands_at: str = ""
    outcome: str = ""


@dataclass(frozen=True)
class Step:
    """A call of the world. Starts are known by their numbers."""

    what: str
    arguments: tuple[Any, ...]
    seen: Seen


@dataclass
class Schedule:
    """The steps of one world, and of what kind that is."""

    mode: str
    jobs: list[str]
    keep_days: float
    steps: list[Step] = field(default_factory=list)

    @property
    def num_runs(self) -> int:
        return sum(step.what == "advance" for step in self.steps)

    def features(self) -> set[tuple[str, ...]]:
        """What it shows: in which mode a start that stood at a landmark went on, and which others stood where; what
        else was done."""
        found, stand = set(), dict[int, str]()
        for step in self.steps:
            if step.what not in OF_STARTS:
                found.add((self.mode, step.what))
                continue
            number = step.arguments[0]
            at = stand.pop(number, "")
            to = step.seen.stands_at or step.seen.outcome
            found.add((self.mode, step.what, at, to))
            found |= {(self.mode, step.what, at, to, "beside", other) for other in stand.values()}
            if step.seen.stands_at:
                stand[number] = step.seen.stands_at
        return found - {(self.mode, "start")}


def rows_seen(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """Rows without the names of plans: these by the order in which they were made."""
    rows = list(rows)
    plans = sorted({row.created_at for row in rows})
    return sorted((str(r.id), r.text, r.status, str(r.attempt), str(plans.index(r.created_at))) for r in rows)


class RecordedWorld(World):
    """A world that keeps what is done to it."""

    # Which rows share a wave of several is a matter of hashes, so there is one wave.
    wave_rows = 100

    def __init__(self, format: str, mode: str, jobs: list[str], keep_days: float) -> None:
        super().__init__(format, mode, jobs, keep_days)
        self.schedule = Schedule(mode, jobs, keep_days)
        self._numbers: dict[Start, int] = {}

    def _keep(self, what: str, *arguments: Any, start: Start | None = None, outcome: str = "") -> None:
        seen = Seen(rows_seen(self.rows()))
        if start is not None:
            stands_at = "" if start.is_over else start.stands_at
            seen = Seen(seen.rows, tuple(start.passed), stands_at, outcome)
            arguments = (self._numbers[start], *arguments)
        self.schedule.steps.append(Step(what, arguments, seen))

    def start(self, name: str, host: str = "here", retry: bool = False, abandons: bool = False) -> Start:
        start = super().start(name, host, retry, abandons)
        start.at_landmarks = True
        self._numbers[start] = len(self._numbers)
        self._keep("start", name, host, retry, abandons)
        return start

    def advance(self, start: Start, num: int) -> None:
        if start.is_over:
            return
        running = self.running[start]
        super().advance(start, num)
        outcome = ""
        if start.is_over:
            outcome = FAULT if start.fault is not None else running.said or "abandoned"
        self._keep("advance", num >= TO_THE_END, start=start, outcome=outcome)

    def advance_to(self, start: Start, at: str) -> None:
        """Let a start go on until it stands at a landmark."""
        while start.stands_at != at and not start.is_over:
            self.advance(start, 1)

    def suspend(self, start: Start) -> None:
        super().suspend(start)
        self._keep("suspend", start=start)

    def kill(self, start: Start) -> None:
        super().kill(start)
        self._keep("kill", start=start)

    def beat_late(self, start: Start) -> None:
        super().beat_late(start)
        self._keep("beat_late", start=start)

    def remove_locks(self, start: Start) -> None:
        super().remove_locks(start)
        self._keep("remove_locks", start=start)

    def pass_time(self, seconds: float) -> None:
        super().pass_time(seconds)
        self._keep("pass_time", seconds)

    def put(self, rows: Input) -> None:
        super().put(rows)
        self._keep("put", list(rows))

    def lose_a_reply(self, is_lost: bool = True) -> None:
        super().lose_a_reply(is_lost)
        self._keep("lose_a_reply", is_lost)

    def break_or_mend_the_model(self) -> None:
        super().break_or_mend_the_model()
        self._keep("break_or_mend_the_model")

    def delete(self, id: str | None) -> None:
        super().delete(id)
        self._keep("delete", id)


def recorded(mode: str, jobs: list[str], play: Callable[[RecordedWorld], None]) -> Schedule:
    """The schedule of a world in which `play` does what it likes."""
    world = RecordedWorld("delta", mode, jobs, 0.0)
    with pytest.MonkeyPatch.context() as patch, locks_of(world.clock, patch):
        patch.setattr(manifest, "say", lambda text: None)
        play(world)
    return world.schedule


def schedules(count: int, num_steps: int) -> list[Schedule]:
    """Schedules on Delta tables, the same in every process."""
    found: list[Schedule] = []

    class Recorder(StoreMachine):
        formats: ClassVar[Any] = [("delta", "append"), ("delta", "merge"), ("delta", "overwrite")]
        make_world = RecordedWorld

        def teardown(self) -> None:
            super().teardown()
            if hasattr(self, "world"):
                assert isinstance(self.world, RecordedWorld)
                found.append(self.world.schedule)

    drawn = settings(
        max_examples=count,
        stateful_step_count=num_steps,
        phases=[Phase.generate],
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Recorder, settings=drawn)
    return found


def telling(found: list[Schedule], count: int, max_runs: int) -> list[Schedule]:
    """So many of them, none with more runs than that: one after the other that which shows most that none has shown."""
    left, chosen, shown = [s for s in found if s.num_runs <= max_runs], list[Schedule](), Counter[tuple[str, ...]]()

    def news(schedule: Schedule) -> float:
        return sum(2.0 ** -shown[feature] for feature in schedule.features())

    while left and len(chosen) < count:
        best = max(left, key=news)
        left.remove(best)
        chosen.append(best)
        shown.update(best.features())
    return chosen
