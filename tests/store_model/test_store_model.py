"""The machine of machine.py over many schedules; and that it finds what each guard keeps out, when that is off."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import Flaky
from hypothesis.stateful import run_state_machine_as_test

from dolly_batch.spark import decisions
from dolly_batch.spark.decisions import TruthTable
from dolly_batch.spark.plan.draft import Draft
from dolly_batch.spark.plan.manifest import PlanFolder
from dolly_batch.spark.tables import delta_log, parquet
from tests.store_model import keys
from tests.store_model.machine import StoreMachine
from tests.store_model.tables import DeltaTable

SETTINGS = settings(
    max_examples=300,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def test_nothing_is_lost_or_twice_and_no_job_is_stuck_in_300_schedules() -> None:
    run_state_machine_as_test(StoreMachine, settings=SETTINGS)


@pytest.mark.chaos
def test_nothing_is_lost_or_twice_and_no_job_is_stuck_in_10000_schedules() -> None:
    run_state_machine_as_test(StoreMachine, settings=settings(SETTINGS, max_examples=10_000, derandomize=False))


Guard = tuple[list[tuple[str, str]], Callable[[pytest.MonkeyPatch], None], str]
MERGES = [("delta", "merge")]
APPENDS_PARQUET = [("parquet", "append")]


def equal_rows_share_a_key(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(keys, "numbered_key", lambda request, number: request)


def older_answers_replace_newer_ones(patch: pytest.MonkeyPatch) -> None:
    rules = decisions._REPLACES["merge"].rules[1:]
    patch.setitem(decisions._REPLACES, "merge", TruthTable(rules))


def plans_are_opened_without_a_look(patch: pytest.MonkeyPatch) -> None:
    opened = Draft.opened
    patch.setattr(Draft, "opened", lambda draft, plan, work, check: opened(draft, plan, work, lambda: None))
    patch.setattr(PlanFolder, "holds_rows", lambda folder, plan: True)


def rows_of_other_plans_are_added_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(parquet, "_without", lambda output, rows, folders: rows)


def commits_rely_on_an_old_look(patch: pytest.MonkeyPatch) -> None:
    log_of = delta_log.log_of
    patch.setattr(delta_log, "log_of", lambda *given: replace(log_of(*given), knows=True))


def commits_take_no_turns(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DeltaTable, "is_taken", lambda table, turn: False)


GUARDS: dict[str, Guard] = {
    "A1": ([("delta", "append"), *APPENDS_PARQUET], equal_rows_share_a_key, "is missing"),
    "A4": (MERGES, older_answers_replace_newer_ones, "older answer"),
    "A5": ([("parquet", "overwrite"), ("delta", "overwrite")], plans_are_opened_without_a_look, "cannot be finished"),
    "A3, the look": ([("delta", "append")], commits_rely_on_an_old_look, r"is there \d+ times"),
    "A3, the turns": ([("delta", "append")], commits_take_no_turns, r"is there \d+ times"),
    "A14": (APPENDS_PARQUET, rows_of_other_plans_are_added_again, r"is there \d+ times"),
}


# These guards take half a minute and more each to be found.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.chaos] if name[:2] in ("A3", "A4", "A5") else []) for name in GUARDS]
)
def test_the_machine_finds_what_a_guard_keeps_out(name: str) -> None:
    chosen, off, said = GUARDS[name]

    class Unguarded(StoreMachine):
        formats: ClassVar[Any] = chosen
        without_guard = staticmethod(off)

    quick = settings(SETTINGS, max_examples=5000, phases=[Phase.generate])
    # Names and times differ from run to run, so a schedule may fail once and not when it is played again.
    with pytest.raises((AssertionError, Flaky)) as caught:
        run_state_machine_as_test(Unguarded, settings=quick)
    assert re.search(said, "\n".join(map(str, [caught.value, *getattr(caught.value, "exceptions", ())])))
