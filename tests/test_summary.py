"""What a run prints at its end."""

from typing import Any

import pytest

from dolly_batch.console import summary_lines
from dolly_batch.records import ERROR_STATUSES
from dolly_batch.report import WHAT_TO_DO, Report

GENERATED: dict[str, Any] = {
    **{"num_answered_by_model": 400, "num_read_tokens": 50_000, "num_generated_tokens": 20_000, "model_loads": 2},
    **{"by_status": {"ok": 380, "too_long": 7, "truncated": 13}, "num_waves": 4, "output": "out"},
    "seconds": {"session": 3.0, "plan": 4.5, "generate": 100.0, "publish": 2.0, "audit": 1.0},
}


def lines(**changed: Any) -> list[str]:
    return summary_lines(Report("job", **{**GENERATED, **changed}))


def test_rows_tokens_times_loads_and_what_to_do_about_errors() -> None:
    assert lines()[:2] == [
        "400 rows answered (4.0 rows/s), 50,000 tokens in (500 tokens/s), 20,000 tokens out (200 tokens/s); "
        "2 model load(s)",
        "wall time: session 3.0 s, plan 4.5 s, generate 100.0 s, publish 2.0 s, audit 1.0 s "
        "(generate: model loading included)",
    ]
    assert [line.partition(":")[0] for line in lines()[2:]] == ["too_long (7 rows)", "truncated (13 rows)", "output"]


def test_a_classification_has_rows_a_second_too() -> None:
    assert "(4.0 rows/s)" in lines(num_generated_tokens=0)[0]


def test_a_resumed_run_names_no_speed_and_one_without_work_nothing() -> None:
    assert "/s" not in lines(num_resumed_waves=3)[0]
    assert "3 of 4 waves were finished by earlier starts" in lines(num_resumed_waves=3)[0]
    assert lines(num_answered_by_model=0, by_status={}, output=None) == []


@pytest.mark.parametrize("status", [*ERROR_STATUSES, "truncated", "empty_response"])
def test_each_kind_of_error_has_its_advice(status: str) -> None:
    assert WHAT_TO_DO[status]


def test_tokens_that_were_reused_are_in_no_speed() -> None:
    assert "20,000 tokens out (150 tokens/s)" in lines(num_begun_tokens=5_000)[0]
