"""What progress.json tells about times: the speed over time, how long waves took, the slowest tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NUM_STEPS = 120
MIN_STEP_S = 5.0
# Places in a wave's list, as spark/generate/tracker.WaveCounts has them.
_BEGAN, _ENDED, _NUM_TASKS, _TASK_S, _SLOWEST, _SLOWEST_S, _HOST = range(4, 11)
_AT, _ROWS, _, _TOKENS = range(4)  # of a point, as spark/generate/speed.Point has them


@dataclass(frozen=True)
class SlowTask:
    """The slowest task of a wave."""

    wave: int
    task: int
    seconds: float
    host: str
    times_mean: float
    """How many times the mean of all tasks of the plan it took."""
    num_tasks: int
    """Of the plan."""


def slowest_tasks(progress: Mapping[str, Any]) -> list[SlowTask]:
    """The slowest task of each wave, the slowest first; of waves that nobody has looked at, none."""
    waves = {int(number): wave for number, wave in progress.get("waves", {}).items() if wave[_NUM_TASKS]}
    num_tasks = sum(wave[_NUM_TASKS] for wave in waves.values())
    mean = sum(wave[_TASK_S] for wave in waves.values()) / max(1, num_tasks) or 1.0
    found = [
        SlowTask(number, wave[_SLOWEST], wave[_SLOWEST_S], wave[_HOST], wave[_SLOWEST_S] / mean, num_tasks)
        for number, wave in waves.items()
    ]
    return sorted(found, key=lambda task: -task.seconds)


def wave_seconds(progress: Mapping[str, Any]) -> dict[int, float]:
    """How long each wave took, in the order of their numbers."""
    waves = sorted((int(number), wave) for number, wave in progress.get("waves", {}).items())
    return {number: round(wave[_ENDED] - wave[_BEGAN], 3) for number, wave in waves if wave[_ENDED]}


def speeds(progress: Mapping[str, Any]) -> tuple[str, list[list[tuple[float, float]]], float]:
    """The unit, for each start its speeds at seconds of work, and all seconds of work; the pauses between starts are
    left out. Tokens that were generated, or rows where none were."""
    starts = [start for start in progress.get("starts", []) if len(start) > 1]
    has_tokens = any(start[-1][_TOKENS] > start[0][_TOKENS] for start in starts)
    place, unit = (_TOKENS, "tokens/s") if has_tokens else (_ROWS, "rows/s")
    work_s = sum(start[-1][_AT] - start[0][_AT] for start in starts)
    step_s = max(MIN_STEP_S, work_s / NUM_STEPS)
    segments, before_s = [], 0.0
    for start in starts:
        segments.append([(before_s + at, value) for at, value in _steps(start, place, step_s)])
        before_s += start[-1][_AT] - start[0][_AT]
    return unit, segments, before_s


def _steps(start: Sequence[Sequence[float]], place: int, step_s: float) -> list[tuple[float, float]]:
    """The growth a second over steps of about so many seconds; the last one may be longer, none is shorter."""
    found: list[tuple[float, float]] = []
    last, first = start[0], start[0]
    for at, point in enumerate(start):
        passed = point[_AT] - last[_AT]
        if passed >= step_s and (start[-1][_AT] - point[_AT] >= step_s or at == len(start) - 1):
            found.append((last[_AT] - first[_AT] + passed / 2, (point[place] - last[place]) / passed))
            last = point
    if not found and start[-1][_AT] > first[_AT]:
        passed = start[-1][_AT] - first[_AT]
        found = [(at, (start[-1][place] - first[place]) / passed) for at in (0.0, passed)]
    return found
