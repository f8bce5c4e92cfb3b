"""One start of a job in a model of the store: the package's steps, over rows in lists."""

import json
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dolly_batch.errors import AuditError, Refused, Stopped
from dolly_batch.spark.decisions import (
    ASKED,
    CARRIED_OVER,
    DONE,
    EXISTING,
    SKIPPED,
    TODO,
    UPDATE,
    is_complete,
    miscounted,
    publishing,
)
from dolly_batch.spark.generate.jobs import whole_folder
from dolly_batch.spark.lock import JobLock
from dolly_batch.spark.plan.draft import Draft
from dolly_batch.spark.plan.manifest import BESIDE, COMPLETE, Plan, PlanFolder, Wave, open_plan
from dolly_batch.spark.plan.planner import plan_id
from dolly_batch.spark.plan.row_status import Facts
from dolly_batch.spark.steps import abandon, proceed, sweep
from tests.store_model import keys
from tests.store_model.starts import Start
from tests.store_model.tables import Output, Row, Rows

WORK = "/work"
Input = list[tuple[str | None, str]]


def key_rows(rows: Input) -> Rows:
    """Rows with their keys; those of bad ids by their number, as `mark_bad_ids` gives it."""
    ids, equals, keyed = Counter(id for id, _ in rows), Counter[tuple[str, str]](), Rows()
    for id, text in rows:
        row, request = keys.row_key(id), keys.request_key("header", text)
        equals[row, request] += 1
        bad = id is None or ids[id] > 1
        request = keys.numbered_key(request, equals[row, request])
        keyed.append(Row(id, text, row, request, "duplicate_id" if bad else ""))
    return keyed


@dataclass(frozen=True)
class Opened:
    folder: PlanFolder
    plan: Plan


@dataclass
class Said:
    """What a start has said at its end; `plan` is None where nothing was left to do."""

    outcome: str
    plan: Plan | None = None
    planned_at: str = ""
    input: Input = field(default_factory=list)


@dataclass
class Running:
    """One start of the job `name`; `read_input` and `answer` are the world's, as is who hears what it says."""

    name: str
    output: Output
    stamp: Callable[[], str]
    read_input: Callable[[], Input]
    answer: Callable[[str], str]
    loses_reply: Callable[[], bool]
    planned: dict[str, Said]
    say: Callable[[Said], None]
    keep_days: float = 0
    retry: bool = False
    abandons: bool = False
    wave_rows: int = 2
    said: str = ""
    """The last of what it has said."""

    def __call__(self, start: Start) -> None:
        files = self.files = start.files
        with JobLock(files, f"{WORK}/.{self.name}.lock") as lock:
            sweep(files, WORK, self.name, self.keep_days)
            if self.abandons:
                abandon(files, WORK, self.name)
                return
            proceed(self, lock.check)
            sweep(files, WORK, self.name, self.keep_days)

    def resume(self) -> Opened | None:
        opened = open_plan(self.files, WORK, self.name)
        if opened is not None and opened[1].retries != self.retry:
            raise Refused("the open plan has other settings: finish it with those, or close it with --abandon")
        return None if opened is None else Opened(*opened)

    def make_plan(self, check: Callable[[], None]) -> Opened | None:
        rows, planned_at = self.read_input(), self.stamp()
        draft = f"{WORK}/.planning-{self.name}-{uuid.uuid4().hex[:12]}"
        try:
            self.files.write(f"{draft}/keyed/part", key_rows(rows).text())
            seen = self.output.seen()  # before the output is read
            table = self.output.read("look")
            states = self._states(self._drafted(f"{draft}/keyed"), table or Rows())
            self.files.write(f"{draft}/rows/part", Rows(row for _, row in states).text())
            if seen is not None:
                only_adds = self._only_adds(states, table or Rows())
                self.files.write(f"{draft}/{BESIDE}", json.dumps({**seen, "only_adds": only_adds}))
            self._drafted(f"{draft}/rows")
            plan = self._plan(states, planned_at)
            before = Said("complete", plan, planned_at, rows)
            if plan.num_rows == plan.num_answered_before and self._is_up_to_date(states):
                self.said = "nothing to do"
                self.say(Said(self.said, None, planned_at, rows))
                return None
            for path, part in self._snapshot(states).items():
                self.files.write(f"{draft}/snapshot/{path}/part", part.text())
            self.planned[planned_at] = before
            folder = Draft(None, self.files, draft).opened(plan, WORK, check)  # type: ignore[arg-type]
            assert folder.folder is not None
            return Opened(folder.folder, folder.plan)
        finally:
            self.files.delete(draft)

    def _drafted(self, part: str) -> Rows:
        """What was written of a draft: it is gone where another start has swept it."""
        return Rows.of(self.files.read(f"{part}/part"))

    def _only_adds(self, states: list[tuple[str, Row]], table: Rows) -> bool:
        there = {row.row_key for row in table}
        meets = any(row.row_key in there for state, row in states if state in (TODO, SKIPPED))
        return not self.retry and (self.output.mode == "append" or (self.output.mode == "merge" and not meets))

    def _states(self, keyed: Rows, table: Rows) -> list[tuple[str, Row]]:
        held: dict[tuple[str, ...], Row] = {}
        for row in table:
            if row.key() not in held or (row.attempt, row.status) > (held[row.key()].attempt, held[row.key()].status):
                held[row.key()] = row
        states = []
        for row in keyed:
            old = held.get(row.key())
            retried = self.retry and old is not None and old.status == "model_error"
            asked = ASKED.decide(there=old is not None, retried=retried, runs=not row.status)
            if asked == DONE:
                asked = CARRIED_OVER if self.output.mode == "overwrite" else EXISTING
            attempt = (old.attempt if old else 0) + 1
            states.append((asked, Row(row.id, row.text, *row.key(), row.status, attempt)))
        return states

    def _is_up_to_date(self, states: list[tuple[str, Row]]) -> bool:
        table = self.output.read()
        if table is None or self.output.mode != "overwrite":
            return table is not None
        return Counter(row.key() for row in table) == Counter(row.key() for _, row in states)

    def _plan(self, states: list[tuple[str, Row]], created_at: str) -> Plan:
        counts = Counter(state for state, _ in states)
        digest = sorted(f"{state} {row.key()} {row.attempt}" for state, row in states)
        facts = Facts(counts={}, num_questions=counts[TODO], num_prompt_tokens=0, digest=digest, histogram={})
        sizes = [min(self.wave_rows, counts[TODO] - first) for first in range(0, counts[TODO], self.wave_rows)]
        values: dict[str, Any] = dict.fromkeys(("header", "destination", "model", "model_identity", "model_folder"), "")
        return Plan(
            plan_id=plan_id(self.name, "out", facts),
            name=self.name,
            created_at=created_at,
            model_revision=None,
            output_schema="",
            num_ids=1,
            num_rows=len(states),
            num_existing=counts[EXISTING],
            num_carried_over=counts[CARRIED_OVER],
            num_skipped=counts[SKIPPED],
            skipped={},
            waves=tuple(Wave(i, size, 1) for i, size in enumerate(sizes)),
            num_prompt_tokens=0,
            estimated_s=0.0,
            slots=1,
            retries=self.retry,
            **values,
        )

    def _snapshot(self, states: list[tuple[str, Row]]) -> dict[str, Rows]:
        todo = sorted((row for state, row in states if state == TODO), key=Row.key)
        num = self.wave_rows
        parts = {f"{TODO}/wave={i // num}": Rows(todo[i : i + num]) for i in range(0, len(todo), num)}
        for state in (SKIPPED, CARRIED_OVER):
            if part := Rows(row for found, row in states if found == state):
                parts[state] = part
        return parts

    def _part(self, opened: Opened, part: str) -> Rows:
        return Rows.of(self.files.read(opened.folder.of("snapshot", part, "part")))

    def generate(self, opened: Opened, check: Callable[[], None]) -> None:
        done = opened.folder.staged_waves()
        for wave in opened.plan.waves:
            if wave.number in done:
                continue
            todo = self._part(opened, f"{TODO}/wave={wave.number}")
            answers = Rows(Row(r.id, r.text, *r.key(), self.answer(r.text), r.attempt) for r in todo)
            with whole_folder(self.files, opened.folder.staged(wave.number)) as draft:
                self.files.write(f"{draft}/part", answers.text())
                check()

    def publish(self, opened: Opened) -> dict[str, object]:
        folder, plan = opened.folder, opened.plan
        if not self.output.is_committed(folder, plan):
            rows = self._published(opened)
            self.output.commit(folder, plan, rows, self.loses_reply, lambda: self._answers(opened))
        return {}

    def _answers(self, opened: Opened) -> Rows:
        """Staged answers and skipped rows. Spark reads them when it writes."""
        rows = self._part(opened, SKIPPED) if opened.plan.num_skipped else Rows()
        for wave in opened.plan.waves:
            rows += Rows.of(self.files.read(f"{opened.folder.staged(wave.number)}/part"))
        return rows

    def _published(self, opened: Opened) -> Rows:
        plan, rows = opened.plan, self._answers(opened)
        if len(rows) != plan.num_todo + plan.num_skipped:
            raise AuditError("staged answers are not the planned rows")
        rows = Rows(Row(r.id, r.text, *r.key(), r.status, r.attempt, plan.plan_id, plan.created_at) for r in rows)
        if plan.num_carried_over:
            held = {row.key(): row for row in self.output.read() or []}
            carried = [held[row.key()] for row in self._part(opened, CARRIED_OVER) if row.key() in held]
            if len(carried) < plan.num_carried_over:
                raise Stopped("rows that are carried over have gone; close the plan with --abandon")
            rows += carried
        return rows

    def _rightly_there(self, opened: Opened, table: Rows) -> Rows:
        """As the audit's: without rows that the plan should have replaced."""
        plan = opened.plan
        if self.output.mode == "overwrite":
            return table
        rule, planned = publishing(self.output.mode, plan.retries), Rows()
        for part in ([SKIPPED] if plan.num_skipped else []) + [f"{TODO}/wave={wave.number}" for wave in plan.waves]:
            planned += self._part(opened, part)
        wanted = {row.key(rule.keys): row for row in planned}

        def is_old(row: Row) -> bool:
            ours = wanted.get(row.key(rule.keys))
            if ours is None or (row.plan_id, row.created_at) == (plan.plan_id, plan.created_at):
                return False
            facts = {
                "later": ours.attempt > row.attempt,
                "changed": ours.request_key != row.request_key,
                "newer_there": row.created_at > plan.created_at,
            }
            return rule.replaces.decide(**facts) == UPDATE

        return Rows(row for row in table if not is_old(row))

    def audit(self, opened: Opened) -> None:
        plan, names = opened.plan, self.output.keys
        planned = Counter[tuple[str, ...]]()
        for part, count in {SKIPPED: plan.num_skipped, CARRIED_OVER: plan.num_carried_over}.items():
            planned.update(row.key(names) for row in (self._part(opened, part) if count else []))
        for wave in plan.waves:
            planned.update(row.key(names) for row in self._part(opened, f"{TODO}/wave={wave.number}"))
        table, was_alone = self.output.committed(opened.folder, plan)
        own = Rows(row for row in table if (row.plan_id, row.created_at) == (plan.plan_id, plan.created_at))
        right = self._rightly_there(opened, table)
        for rows in (own, right) if was_alone and not plan.num_carried_over else (right,):
            have = Counter(row.key(names) for row in rows)
            counts = [miscounted(want, have[key], max) for key, want in planned.items()]
            missing, repeated = (sum(found[side] for found in counts) for side in (0, 1))
            if is_complete(plan.num_planned + plan.num_carried_over, planned.total(), missing, repeated):
                opened.folder.mark(COMPLETE, {})
                self.said = "complete"
                self.say(self.planned[plan.created_at])
                return
        raise AuditError(f"{missing} are missing, {repeated} are repeated; or close the plan with --abandon")
