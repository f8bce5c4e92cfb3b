"""Whether a job still asks for its open plan: what the plan has kept against what is asked now."""

from dataclasses import replace

import pytest

from dolly_batch.spark.options import Options
from dolly_batch.spark.plan.manifest import Plan
from dolly_batch.spark.run import _is_revision, _retries_the_same

COMMIT, OTHER = "a" * 40, "b" * 40
PLAN = Plan(
    **{
        "plan_id": "p1",
        "name": "job",
        "created_at": "2026-01-01",
        "header": "",
        "destination": "",
        "model": "some/model",
    },
    **{"model_revision": COMMIT, "model_identity": "", "model_folder": "", "output_schema": "", "num_ids": 1},
    **{"num_rows": 3, "num_existing": 0, "num_carried_over": 0, "num_skipped": 0, "skipped": {}, "waves": ()},
    **{"num_prompt_tokens": 9, "estimated_s": 1.0, "slots": 2, "retries": False},
)


@pytest.mark.parametrize(
    ("planned", "asked", "same"),
    [
        ((), (), True),
        (("too_long", "truncated"), ("truncated", "too_long"), True),
        (("truncated",), ("model_error",), False),
        (("truncated",), ("truncated", "model_error"), False),
        (("truncated",), (), False),
        ((), ("truncated",), False),
    ],
)
def test_a_retry_of_other_statuses_is_another_plan(
    planned: tuple[str, ...], asked: tuple[str, ...], same: bool
) -> None:
    plan = Plan.from_json(replace(PLAN, retries=bool(planned), retried=planned).to_json())
    assert plan.retried == planned
    assert _retries_the_same(plan, Options(retry=asked)) == same


def test_a_plan_of_an_earlier_version_has_kept_only_that_it_retries() -> None:
    plan = replace(PLAN, retries=True)
    assert "retried" not in plan.to_json()
    assert _retries_the_same(plan, Options(retry=("truncated",)))
    assert not _retries_the_same(plan, Options())


@pytest.mark.parametrize(
    ("planned", "asked", "same"),
    [
        ("v1", "v1", True),
        ("v1", COMMIT, True),  # what v1 was when it was planned
        ("v1", "v2", False),
        ("v1", OTHER, False),
        ("v1", None, False),
        (None, None, True),
        (None, "v1", True),  # a plan of an earlier version has not kept it
        (None, OTHER, False),
    ],
)
def test_another_revision_of_the_model_is_another_plan(planned: str | None, asked: str | None, same: bool) -> None:
    assert _is_revision(replace(PLAN, asked_revision=planned), asked) == same
