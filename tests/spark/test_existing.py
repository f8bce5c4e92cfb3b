"""What a start with `--retry truncated` makes of rows that the output holds, one row of each kind."""

from dataclasses import dataclass
from typing import Any

import pytest
from pyspark.sql import DataFrame
from pyspark.sql import types as T

from dolly_batch.spark.plan.existing import PARTIAL_COLUMNS, Retry, with_existing
from dolly_batch.spark.plan.row_status import EXISTING, SKIPPED, TODO
from dolly_batch.spark.tables.output import OutputTable
from tests.spark.desk import Desk

MAX_POSITIONS = 100
TABLE = "id string, response string, status string, num_completion_tokens int, request_key string, attempt int"
KEYED = (
    "row_key string, request_key string, status string, error string, num_prompt_tokens int, "
    "earlier_0_row_key string, earlier_0_request_key string"
)


@dataclass(frozen=True)
class Kept(OutputTable):
    """An output that holds the given rows, under the key `now` or the key `before` of a smaller limit."""

    table: DataFrame | None = None

    def read(self) -> DataFrame | None:
        return self.table


@dataclass(frozen=True)
class Case:
    """A row as it is held (key, status, attempt, tokens), what planning says of it, and what is to come of it."""

    held: tuple[str, str, int, int | None] | None
    judged: str | None = None
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
        ("before", "truncated", 1, 10), judged="too_long", num_prompt_tokens=85, state=TODO, key="before", limit=15
    ),
    "without room": Case(("now", "truncated", 1, 20), judged="too_long", num_prompt_tokens=80),
    "with an id that is bad by now": Case(("now", "truncated", 1, 20), judged="duplicate_id", state=SKIPPED),
    "new": Case(None, state=TODO),
    "new and too long": Case(None, judged="too_long", state=SKIPPED),
}


@pytest.fixture
def target(desk: Desk) -> Kept:
    job = desk.job(output={"mode": "append"}, generation={"max_new_tokens": 20})
    rows = [
        (name, f"text of {name}", status, tokens, f"{key} {name}", attempt)
        for name, (key, status, attempt, tokens) in ((name, case.held) for name, case in CASES.items() if case.held)
    ]
    schema = T.StructType([T.StructField("id", T.StringType())])
    return Kept(desk.spark, job, schema, 1, None, None, desk.spark.createDataFrame(rows, TABLE))


def test_each_kind_of_row_comes_to_its_own(desk: Desk, target: Kept) -> None:
    rows = [
        (
            *(f"s{name}", f"now {name}", case.judged, "why" if case.judged else None, case.num_prompt_tokens),
            *(f"s{name}", f"before {name}"),
        )
        for name, case in CASES.items()
    ]
    keyed = desk.spark.createDataFrame(rows, KEYED)
    found = with_existing(keyed, target, Retry(("truncated",), ("{}",)), MAX_POSITIONS).collect()
    assert len(found) == len(CASES)
    told: dict[str, dict[str, Any]] = {row["row_key"][1:]: row.asDict() for row in found}
    for name, case in CASES.items():
        row = told[name]
        assert (name, row["state"], row["request_key"]) == (name, case.state, f"{case.key} {name}")
        assert (name, row["attempt"]) == (name, 1 if case.held is None else case.held[2] + 1)
        begun = (None, None, None)
        if case.held and case.state == TODO:
            begun = (f"text of {name}", case.held[3], case.limit)
            assert (name, row["status"], row["error"]) == (name, None, None)
        assert (name, tuple(row[column] for column in PARTIAL_COLUMNS)) == (name, begun)


def test_without_retry_all_that_is_held_stays_and_nothing_is_gone_on_with(desk: Desk, target: Kept) -> None:
    rows = [(f"s{name}", f"now {name}", None, None, 30) for name in CASES]
    keyed = desk.spark.createDataFrame(rows, KEYED.rpartition(", earlier_0_row")[0])
    found = with_existing(keyed, target, Retry(), MAX_POSITIONS)
    assert not set(found.columns) & set(PARTIAL_COLUMNS)
    held = {name for name, case in CASES.items() if case.held and case.held[0] == "now"}
    assert {row["row_key"][1:] for row in found.collect() if row["state"] == EXISTING} == held
