"""Prefix sharing: one instruction of 200 tokens over many contexts of 50, with sharing on and off."""

import random
import statistics
from dataclasses import dataclass, replace

from benchmarks.contest.contest import Course, say
from benchmarks.contest.engines import Engine, Options
from benchmarks.contest.launch import Run
from benchmarks.contest.work import Row

# How many tokens an answer has, and in what part of the rows that is tried.
CASES = ((8, 1.0), (1, 0.25), (32, 0.25))
_INSTRUCTION_TOKENS, _CONTEXT_TOKENS = 200, 50


@dataclass
class Sharing:
    """Runs with sharing on and off, in pairs, for one length of answer."""

    num_new_tokens: int
    on: list[Run]
    off: list[Run]

    @property
    def ratio(self) -> float:
        """The median of the paired ratios of rows a second."""
        return statistics.median(b.seconds / a.seconds for a, b in zip(self.on, self.off, strict=True))


def measure(course: Course, engine: Engine, options: Options, num_rows: int, rounds: int) -> list[Sharing]:
    """Both settings in turn for each length of answer."""
    results = []
    without = replace(engine, options={**engine.options, "prefix_sharing": False})
    with course.start(engine, options) as shares, course.start(without, options) as does_not:
        for count, part in CASES:
            rows = _rows(max(1, round(part * num_rows)), count)
            result = Sharing(count, [], [])
            for _ in range(rounds):
                result.on.append(course.run(shares, rows))
                result.off.append(course.run(does_not, rows))
            say(f"  {count} new tokens: {result.ratio:.1f} times")
            results.append(result)
    return results


def _rows(count: int, num_new_tokens: int) -> list[Row]:
    numbers = random.Random(0)
    instruction = tuple(numbers.randrange(5, 50_000) for _ in range(_INSTRUCTION_TOKENS))
    contexts = [tuple(numbers.randrange(5, 50_000) for _ in range(_CONTEXT_TOKENS)) for _ in range(count)]
    return [Row(f"s{i}", instruction + context, num_new_tokens) for i, context in enumerate(contexts)]
