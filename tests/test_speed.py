"""The time left: from the tokens of the rows that are left, and the present speed of the whole run."""

import random
from dataclasses import dataclass

import pytest

from dolly_batch.report import Progress, duration
from dolly_batch.spark.generate.speed import MAX_POINTS, Point, Speed


@dataclass
class Row:
    prompt: int
    answer: int

    @property
    def cost(self) -> float:
        return self.answer + self.prompt / 8


def run(rows: list[Row], slots: int, tokens_per_s: float, load_s: float = 30.0) -> list[Point]:
    """The points of a run that is looked at each second: some slots, each with one row at a time."""
    free = [load_s] * slots
    ends: list[tuple[float, Row]] = []
    for row in rows:
        slot = min(range(slots), key=free.__getitem__)
        free[slot] += row.cost / tokens_per_s
        ends.append((free[slot], row))
    ends.sort(key=lambda end: end[0])
    points, done, prompts, tokens = [], 0, 0, 0
    for second in range(int(ends[-1][0]) + 2):
        while done < len(ends) and ends[done][0] <= second:
            prompts, tokens, done = prompts + ends[done][1].prompt, tokens + ends[done][1].answer, done + 1
        points.append(Point(float(second), done, prompts, tokens))
    return points


def shards(rows: list[Row], size: int) -> list[Row]:
    """Rows as a plan lays them out: in shards, the longest prompts of each first."""
    parts = [rows[at : at + size] for at in range(0, len(rows), size)]
    return [row for part in parts for row in sorted(part, key=lambda row: -row.prompt)]


def errors_of_time_left(rows: list[Row], points: list[Point], from_share: float) -> list[float]:
    """Error of the time left, as a share of the whole run's time, each minute of a run from a share of it on."""
    speed, end_s = Speed(), next(point.at_s for point in points if point.num_rows == len(rows))
    errors, num_prompts = [], sum(row.prompt for row in rows)
    for point in points:
        speed.add(point, 0)
        if point.at_s % 60 == 0 and from_share * end_s <= point.at_s < end_s:
            left = speed.left_s(len(rows), num_prompts)
            assert left is not None
            errors.append(abs(left - (end_s - point.at_s)) / end_s)
    return errors


@pytest.mark.parametrize("seed", range(4))
def test_each_minutes_time_left_is_right_to_five_percent_of_the_run(seed: int) -> None:
    chance = random.Random(seed)
    rows = [Row(int(chance.lognormvariate(5, 0.8)), 1 + int(chance.expovariate(1 / 60))) for _ in range(6000)]
    laid_out = shards(rows, 300)
    points = run(laid_out, slots=32, tokens_per_s=45.0)
    errors = errors_of_time_left(laid_out, points, from_share=0.4)
    assert len(errors) >= 3
    assert errors[-1] <= 0.05
    assert max(errors) <= 0.1


def test_a_speed_that_changes_is_the_present_one_soon() -> None:
    speed = Speed()
    for second in range(0, 4000, 2):
        speed.add(Point(second, 1 + min(second, 1000) * 10 + max(0, second - 1000), 0, 0), 0)
    assert speed.per_s("num_rows") == pytest.approx(1.0)
    assert len(speed.points) <= MAX_POINTS
    assert speed.left_s(speed.points[-1].num_rows + 500, 0) == pytest.approx(500)


def test_rows_of_earlier_starts_and_the_time_of_loading_are_no_speed() -> None:
    speed = Speed()
    for second in range(100):
        speed.add(Point(second, 5000 + max(0, second - 90), 50_000 + 10 * max(0, second - 90), 0), 5000)
    assert speed.points[0].at_s == 91
    assert speed.per_s("num_rows") == 1.0
    assert speed.left_s(5029, 50_290) == pytest.approx(20)
    assert Speed().left_s(10, 10) is None


def test_a_line_says_waves_rows_speeds_time_left_and_errors() -> None:
    progress = Progress("2026-01-01T00:00:00+00:00", 40, 12, 100_000, 30_500, 9_000_000, 17, 845.6, 3.25, 21_300.0)
    assert str(progress) == (
        "12 of 40 waves, 30,500 of 100,000 rows (30.5%), 846 tokens/s, 3.25 rows/s, time left: 5 h 55 min, errors: 17"
    )
    assert "(0.0%), time left: not known yet, errors: 0" in str(Progress("", 1, 0, 10, 0, 0, 0))
    times = {7.4: "7 s", 130: "2 min 10 s", 1500: "25 min", 7320: "2 h 2 min", 200_000: "2.3 days"}
    assert {seconds: duration(seconds) for seconds in times} == times


def test_points_of_one_time_are_no_division_by_zero() -> None:
    speed = Speed([Point(at_s, 10 + int(at_s), 0, 0) for at_s in (0.0, 400.0, 400.0)])
    assert speed.per_s("num_rows") == 1.0
    assert speed.left_s(510, 0) == 100.0
    assert Speed([Point(5.0, 1, 0, 0), Point(5.0, 2, 0, 0)]).per_s("num_rows") is None


def test_nothing_is_left_when_all_rows_are_answered_however_short_the_run_was() -> None:
    assert Speed([Point(5.0, 10, 0, 0)]).left_s(10, 40) == 0.0
    assert Speed([Point(5.0, 9, 0, 0)]).left_s(10, 40) is None


def test_a_task_that_runs_again_is_no_negative_speed() -> None:
    speed = Speed()
    for at_s, num_rows in [(0.0, 1), (100.0, 201), (200.0, 51), (300.0, 181), (400.0, 401)]:
        speed.add(Point(at_s, num_rows, 8 * num_rows, num_rows), 0)
        per_s, left_s = speed.per_s("num_rows"), speed.left_s(1000, 8000)
        assert per_s is None or per_s > 0
        assert left_s is None or left_s > 0
    assert [point.num_rows for point in speed.points] == [1, 201, 201, 201, 401]
    assert speed.per_s("num_rows") == pytest.approx(200 / 300)  # of the last five minutes
