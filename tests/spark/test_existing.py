"""Which rows a start with `--retry truncated` asks again: the truth table of `with_existing`, one row of each kind."""

from dataclasses import dataclass
from typing import Any

import pytest
from pyspark.sql import DataFrame
from pyspark.sql import types as T

from dolly_batch.spark.decisions import EXISTING, SKIPPED, TODO
from dolly_batch.spark.plan.existing import PARTIAL_COLUMNS, Retry, with_existing
from dolly_batch.spark.plan.lookup import found_rows
from dolly_batch.spark.tables.output import OutputTable
from tests.spark.desk import Desk

MAX_POSITIONS = 100
TABLE = (
    "id string, response string, status string, num_completion_tokens int, request_key string, attempt int, "
    "plan_id string"
)
KEYED = (
    "row_key string, request_key string, status string, error string, num_prompt_tokens int, "
    "earlier_0_row_key string, earlier_0_request_key string"
)


@dataclass(frozen=True)
class GivenOutput(OutputTable):
    """An output with the given rows, under the key `now` or the key `before` of a smaller limit."""

    table: DataFrame | None = None

    def read(self) -> DataFrame | None:
        return self.table


@dataclass(frozen=True)
class Case:
    """A row in the output (key, status, attempt, tokens), its status in the new plan, and the expected result."""

    existing: tuple[str, str, int, int | None] | None
    planned: str | None = None
    num_prompt_tokens: int | None = 30
    state: str = EXISTING
    key: str = "now"
    limit: int | None = None


CASES = {
    "answered": Case(("now", "ok", 1, 5)),
    "cut off at the limit": Case(("now", "truncated", 1, 20), state=TODO, limit=40),
    "cut off twice": Case(("now", "truncated", 2, 40), state=TODO, limit=60),
    "cut off at a smaller limit": Case(("before", "truncated", 1, 10), state=TODO, key="before", limit=20),
    "answered under a smaller limit": Case(("before", "ok", 1, 5), key="before"),
    "failed under a smaller limit": Case(("before", "model_error", 1, None), key="before"),
    "with room for less": Case(("now", "truncated", 1, 20), num_prompt_tokens=70, state=TODO, limit=30),
    "too long only by the larger limit": Case(
        ("before", "truncated", 1, 10), planned="too_long", num_prompt_tokens=85, state=TODO, key="before", limit=15
    ),
    "without room": Case(("now", "truncated", 1, 20), planned="too_long", num_prompt_tokens=80),
    "with an id that is repeated now": Case(("now", "truncated", 1, 20), planned="duplicate_id", state=SKIPPED),
    "new": Case(None, state=TODO),
    "without a token to reuse": Case(("now", "truncated", 1, 0), state=TODO),
    "without a token, and too long": Case(("now", "truncated", 1, 0), planned="too_long", state=SKIPPED),
    "new and too long": Case(None, planned="too_long", state=SKIPPED),
}


@pytest.fixture
def target(desk: Desk) -> GivenOutput:
    job = desk.job(output={"mode": "append"}, generation={"max_new_tokens": 20})
    rows = [
        (name, f"text of {name}", status, tokens, f"{key} {name}", attempt, "plan")
        for name, (key, status, attempt, tokens) in (
            (name, case.existing) for name, case in CASES.items() if case.existing
        )
    ]
    schema = T.StructType([T.StructField("id", T.StringType())])
    return GivenOutput(desk.spark, job, schema, 1, None, None, desk.spark.createDataFrame(rows, TABLE))


def test_each_kind_of_row_is_done_retried_resumed_or_skipped(desk: Desk, target: GivenOutput) -> None:
    rows = [
        (
            *(f"s{name}", f"now {name}", case.planned, "why" if case.planned else None, case.num_prompt_tokens),
            *(f"s{name}", f"before {name}"),
        )
        for name, case in CASES.items()
    ]
    keyed = desk.spark.createDataFrame(rows, KEYED)
    retry = Retry(("truncated",), ("{}",))
    matched = with_existing(keyed, found_rows(target, retry), target, retry, MAX_POSITIONS).collect()
    assert len(matched) == len(CASES)
    by_name: dict[str, dict[str, Any]] = {row["row_key"][1:]: row.asDict() for row in matched}
    for name, case in CASES.items():
        row = by_name[name]
        assert (name, row["state"], row["request_key"]) == (name, case.state, f"{case.key} {name}")
        assert (name, row["attempt"]) == (name, 1 if case.existing is None else case.existing[2] + 1)
        partial = (None, None, None)
        if case.existing and case.limit is not None:
            partial = (f"text of {name}", case.existing[3], case.limit)
            assert (name, row["status"], row["error"]) == (name, None, None)
        assert (name, tuple(row[column] for column in PARTIAL_COLUMNS)) == (name, partial)


def test_without_retry_all_existing_rows_are_done_and_none_is_resumed(desk: Desk, target: GivenOutput) -> None:
    rows = [(f"s{name}", f"now {name}", None, None, 30) for name in CASES]
    keyed = desk.spark.createDataFrame(rows, KEYED.rpartition(", earlier_0_row")[0])
    matched = with_existing(keyed, found_rows(target, Retry()), target, Retry(), MAX_POSITIONS)
    assert not set(matched.columns) & set(PARTIAL_COLUMNS)
    existing = {name for name, case in CASES.items() if case.existing and case.existing[0] == "now"}
    assert {row["row_key"][1:] for row in matched.collect() if row["state"] == EXISTING} == existing
