"""How fast a run is, and how long it will take: from what it has done at some times. Pure arithmetic."""

from dataclasses import astuple, dataclass, field

from dolly_batch.tasks.base import PREFILL_SPEEDUP

MIN_WINDOW_S = 300.0
MAX_POINTS = 400


@dataclass(frozen=True)
class Point:
    """What all tasks of a run had done at a time, in seconds since the epoch. Rows and tokens never fall."""

    at_s: float
    num_rows: int
    num_prompt_tokens: int
    num_tokens: int


@dataclass
class Speed:
    """The points of one start, from its first answered rows on: loading a model is no part of a speed.

    The present speed is that of the last five minutes, or of the last half of a longer run: shorter times would show
    the ends of waves, longer ones a speed that has changed meanwhile.
    """

    points: list[Point] = field(default_factory=list)

    def add(self, point: Point, before: int) -> None:
        """Add a later point; `before` are the rows that were answered before this start.

        A task that Spark runs again counts from 0 once more: what it has caught up with is no progress.
        """
        if self.points:
            counts = zip(astuple(self.points[-1])[1:], astuple(point)[1:], strict=True)
            point = Point(point.at_s, *(max(pair) for pair in counts))
        if point.num_rows > before:
            self.points.append(point)
        if len(self.points) > MAX_POINTS:  # half as dense, for as long again
            self.points = [self.points[0], *self.points[2:-1:2], self.points[-1]]

    @property
    def span(self) -> tuple[Point, Point] | None:
        """The points between which the present speed is measured; None before there are two at different times."""
        if not self.points or self.points[-1].at_s <= self.points[0].at_s:
            return None
        last = self.points[-1]
        earlier = [point for point in self.points if point.at_s < last.at_s]
        from_s = last.at_s - max(MIN_WINDOW_S, (last.at_s - self.points[0].at_s) / 2)
        return next((point for point in earlier if point.at_s >= from_s), earlier[-1]), last

    def per_s(self, name: str) -> float | None:
        """How much a number of the points grows each second."""
        if self.span is None:
            return None
        first, last = self.span
        return float(getattr(last, name) - getattr(first, name)) / (last.at_s - first.at_s)

    def left_s(self, num_rows: int, num_prompt_tokens: int) -> float | None:
        """Seconds until so many rows, with so many tokens of prompts, are answered; both are those of the whole plan.

        What is left is weighed by tokens, prompts by what reading costs. Answers are taken to be as long as those of
        this start.
        """
        if self.points and self.points[-1].num_rows >= num_rows:
            return 0.0
        if self.span is None:
            return None
        first, last = self.span
        done = last.num_rows - self.points[0].num_rows
        if not done or last.num_rows == first.num_rows:
            return None
        answer = (last.num_tokens - self.points[0].num_tokens) / done
        rows_left = max(0, num_rows - last.num_rows)
        prompts_left = max(0, num_prompt_tokens - last.num_prompt_tokens) if rows_left else 0
        passed = last.at_s - first.at_s
        rate = _cost(last.num_tokens - first.num_tokens, last.num_prompt_tokens - first.num_prompt_tokens) / passed
        if not rate:  # rows of no tokens at all
            return rows_left * passed / (last.num_rows - first.num_rows)
        return _cost(rows_left * answer, prompts_left) / rate


def _cost(num_tokens: float, num_prompt_tokens: float) -> float:
    return num_tokens + num_prompt_tokens / PREFILL_SPEEDUP
