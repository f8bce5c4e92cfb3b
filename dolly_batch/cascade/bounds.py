"""From which margin on a proxy may answer: for each label a bound, so that what the job promises holds.

A margin is the lead of a label's probability over the second; with many labels it tells right answers from wrong ones
better than the probability itself (docs/log).

The promise: of the answers that the proxy gives in a group of labels, at least the share `agreement` is what the
teacher (the model, or a gold label) says; in all groups at once, with 95 % confidence over the drawing of the sample.
A label that has rows enough is a group of its own; the others are one group together. It is shown on rows that the
proxy was not trained on, and holds for any proxy, good or bad:

- one bound: an exact binomial test of "it agrees less often", which is the lower limit of Clopper and Pearson (1934);
- the bounds of a group: fixed-sequence testing (Angelopoulos et al. 2021, "Learn then Test"). Training rows choose
  where to begin; then lower and lower bounds are tested until one fails. So none is chosen by the rows that it is
  tested on, and each test has the whole error of its group;
- the groups: Bonferroni, each has an equal part of the error.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

ERROR = 0.05
"""Of all groups together: how often the promise may fail, over samples."""
ENOUGH = 2.0
"""A label is a group of its own with so many times the rows that, all agreeing, would just do."""
STEPS = 20
CHECKED_SHARE = 0.4
"""Of the sample: rows that the bounds are tested on. The others train the proxy."""

Judged = tuple[float, bool]
"""The margin of the label that the proxy gives a row, and whether the teacher says the same."""


@dataclass(frozen=True)
class Bound:
    """The labels of a group, by their numbers, and the margin from which on the proxy answers; None: never.

    Of the rows that were checked, `num_answered` are at or above it, and `num_agreeing` of those agree.
    """

    labels: tuple[int, ...]
    margin: float | None = None
    num_answered: int = 0
    num_agreeing: int = 0


def at_least(num_rows: int, num_agreeing: int, share: float) -> float:
    """How likely so many or more of the rows agree, each with this probability."""
    terms = range(num_agreeing, num_rows + 1)
    return min(1.0, math.fsum(math.exp(_log_probability(num_rows, agreeing, share)) for agreeing in terms))


def _log_probability(num_rows: int, agreeing: int, share: float) -> float:
    ways = math.lgamma(num_rows + 1) - math.lgamma(agreeing + 1) - math.lgamma(num_rows - agreeing + 1)
    return ways + agreeing * math.log(share) + (num_rows - agreeing) * math.log1p(-share)


def fewest_rows(agreement: float, error: float = ERROR) -> int:
    """So many rows, all of them agreeing, just show the agreement; with fewer nothing can be shown."""
    return math.ceil(math.log(error) / math.log(agreement))


def grouped(expected: Sequence[float], agreement: float) -> list[tuple[int, ...]]:
    """The groups of labels, by how many rows of each may be expected where the bounds are tested."""
    order = sorted(range(len(expected)), key=lambda label: (-expected[label], label))
    num_alone = len(order)
    while num_alone:
        num_groups = num_alone + (num_alone < len(order))
        if expected[order[num_alone - 1]] >= ENOUGH * fewest_rows(agreement, ERROR / num_groups):
            break
        num_alone -= 1
    rest = tuple(sorted(order[num_alone:]))
    return [*((label,) for label in order[:num_alone]), *([rest] if rest else [])]


def sequence(trained: Sequence[Judged], scale: float, agreement: float) -> list[float]:
    """The bounds of a group in the order of their tests, by training rows that were judged by a proxy without them.

    `scale` times as many rows will be there when they are tested. It begins with the bound whose test looks clearest.
    """
    rows = sorted(trained, reverse=True)
    ends = sorted({math.ceil(len(rows) * step / STEPS) for step in range(1, STEPS + 1)} - {0})
    chances = []
    for end in ends:
        num_rows = round(end * scale)
        num_agreeing = round(sum(agrees for _, agrees in rows[:end]) * scale)
        chances.append(at_least(num_rows, min(num_agreeing, num_rows), agreement))
    if not chances:
        return []
    start = min(range(len(ends)), key=lambda at: (chances[at], at))
    lower = [rows[end - 1][0] for end in ends[start:]]
    return list(dict.fromkeys([*lower, 0.0]))


def last_passing(
    labels: tuple[int, ...], bounds: Sequence[float], checked: Sequence[Judged], agreement: float, error: float
) -> Bound:
    """The last bound of the sequence before one fails its test, `error` being that of its group."""
    found = Bound(labels)
    for bound in bounds:
        answered = [agrees for margin, agrees in checked if margin >= bound]
        if at_least(len(answered), sum(answered), agreement) > error:
            break
        found = Bound(labels, bound, len(answered), sum(answered))
    return found


def has_fallen(num_answered: int, num_agreeing: int, agreement: float) -> bool:
    """Whether so few of these rows agree that, with 95 % confidence, the agreement is no longer there."""
    return num_answered > 0 and 1.0 - at_least(num_answered, num_agreeing + 1, agreement) <= ERROR
