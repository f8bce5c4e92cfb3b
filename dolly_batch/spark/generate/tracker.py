"""On the driver: how far a plan is, over all its waves and starts; told in the log, in Spark's UI and to `status`.

progress.json, in the plan's folder, holds a `Progress`; of each wave what its tasks have done, and the slowest of them;
of each start its points, for the speed over time. For display only: no answer depends on it, and no fault of it ends a
run.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from datetime import UTC, datetime
from threading import Lock
from typing import Any

from py4j.protocol import Py4JError

from dolly_batch.report import Progress
from dolly_batch.spark.generate.progress import TaskCounts, Tasks, WaveProgress, read_tasks, together
from dolly_batch.spark.generate.speed import Point, Speed
from dolly_batch.spark.plan.manifest import PROGRESS, Plan, PlanFolder, Wave

log = logging.getLogger("dolly_batch.progress")

SAY_EVERY_S = 59.0  # with the time between two looks: once a minute at least
KEEP_EVERY_S = 10.0
MAX_COUNT = 1e15  # of seconds, rows or tokens
LOOK_SHARE = 0.1  # of the time: however slow a shared folder is, looking at it takes no more


@dataclass(frozen=True)
class WaveCounts:
    """What the tasks of a wave have done, and which of them took longest."""

    num_rows: int
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    num_errors: int = 0
    began_s: float = 0.0
    """Since the epoch, as `ended_s`; both are 0 where nobody has looked."""
    ended_s: float = 0.0
    num_tasks: int = 0
    task_s: float = 0.0
    """Of all tasks."""
    slowest: int = 0
    slowest_s: float = 0.0
    slowest_host: str = ""

    @classmethod
    def of(cls, wave: Wave, tasks: Tasks, began_s: float, ended_s: float) -> "WaveCounts":
        """Of a wave's tasks."""
        total = together(tasks.values())
        number = max(tasks, key=lambda task: tasks[task].seconds, default=0)
        slowest = tasks.get(number, TaskCounts())
        return cls(
            num_rows=min(total.num_rows, wave.num_rows),
            num_prompt_tokens=total.num_prompt_tokens,
            num_tokens=total.num_tokens,
            num_errors=total.num_errors,
            began_s=began_s,
            ended_s=ended_s,
            num_tasks=len(tasks),
            task_s=round(total.seconds, 3),
            slowest=number,
            slowest_s=slowest.seconds,
            slowest_host=slowest.host,
        )


@dataclass
class Tracker:
    """Counts a plan's waves, each from its begin to its end. `ended` is an accumulator, where tasks write no files."""

    folder: PlanFolder
    plan: Plan
    ended: Any = None
    interval_s: float = 1.0
    """Between two looks at the tasks."""
    speaks: bool = True
    """Whether lines go to the log."""
    now: Callable[[], float] = time.time
    _running: dict[int, tuple[Wave, float]] = field(default_factory=dict)
    _waves: dict[int, WaveCounts] = field(default_factory=dict)
    """Of finished waves."""
    _starts: list[list[Any]] = field(default_factory=list)
    _speed: Speed = field(default_factory=Speed)
    _last: Progress | None = None
    _before: int = 0
    _look_at: float = 0.0
    _keep_at: float = 0.0
    _say_at: float = 0.0
    _lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        """Go on from what earlier starts have kept, as far as their waves are still there."""
        staged, kept = self.folder.staged_waves(), read_kept(self.folder)
        self._starts = kept.get("starts", [])
        for wave in self.plan.waves:
            if wave.number in staged:
                self._waves[wave.number] = _known(wave, kept)
        self._before = sum(counts.num_rows for counts in self._waves.values())
        self._say_at = self.now() + SAY_EVERY_S

    def begin(self, wave: Wave) -> WaveProgress:
        """A wave begins; what an earlier start has left of its tasks is forgotten."""
        folder = self.folder.progress(wave.number)
        if folder is not None and self._starts:
            self.folder.files.delete(self.folder.of("progress", f"wave={wave.number}"))
        with self._lock:
            self._running[wave.number] = (wave, self.now())
        return WaveProgress(wave.number, folder, self.ended)

    def finish(self, wave: Wave) -> None:
        """A wave is staged: it is looked at once more."""
        _, began_s = self._running[wave.number]
        counts = WaveCounts(wave.num_rows)
        with _for_display():  # all rows, whatever a slow folder shows yet
            counts = replace(WaveCounts.of(wave, self._tasks(wave), began_s, self.now()), num_rows=wave.num_rows)
        with self._lock:
            del self._running[wave.number]
            self._waves[wave.number] = counts

    def look(self) -> Progress | None:
        """Look at the tasks, when it is time again; say, and keep, what is due."""
        now = self.now()
        if now < self._look_at:
            return None
        self._look_at = now + self.interval_s
        with _for_display():
            return self._looked(now)
        return None

    def close(self) -> None:
        """Keep what there is at the end of a start."""
        with _for_display():
            self._keep(self._progress(self.now()))

    def _looked(self, now: float) -> Progress:
        progress = self._last = self._progress(now)
        self._look_at = self.now() + max(self.interval_s, (self.now() - now) / LOOK_SHARE)
        if self.speaks and now >= self._say_at:
            self._say_at = now + SAY_EVERY_S
            log.info("%s: %s", self.plan.name, progress)
        if now >= self._keep_at:
            self._keep_at = now + KEEP_EVERY_S
            self._keep(progress)
        return progress

    def describe(self, wave: Wave) -> str:
        """A wave's job in Spark's UI: the job, the wave, its rows, and how far the whole is."""
        done = f"; {self._last}" if self._last is not None and self._last.rows_per_s else ""
        return f"{self.plan.name}: wave {wave.number}, {wave.num_rows:,} rows{done}"

    def _tasks(self, wave: Wave) -> Tasks:
        if self.ended is None:
            return read_tasks(self.folder.progress(wave.number))
        ended = dict(self.ended.value)
        return {task: counts for (number, task), counts in ended.items() if number == wave.number}

    def _progress(self, now: float) -> Progress:
        with self._lock:
            running, finished = [*self._running.values()], {**self._waves}
        waves = [*finished.values(), *(WaveCounts.of(wave, self._tasks(wave), began, now) for wave, began in running)]
        rows, tokens, errors = (sum(getattr(wave, f"num_{name}") for wave in waves) for name in _SUMMED)
        prompts = sum(wave.num_prompt_tokens or self._usual_prompts(wave) for wave in waves)
        with self._lock:
            self._speed.add(Point(round(now, 2), rows, prompts, tokens), self._before)
            return Progress(
                at=datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds"),
                num_waves=len(self.plan.waves),
                num_finished_waves=len(finished),
                num_todo=self.plan.num_todo,
                num_rows=rows,
                num_tokens=tokens,
                num_errors=errors,
                tokens_per_s=_rounded(self._speed.per_s("num_tokens")),
                rows_per_s=_rounded(self._speed.per_s("num_rows")),
                left_s=_rounded(self._speed.left_s(self.plan.num_todo, self.plan.num_prompt_tokens)),
            )

    def _usual_prompts(self, wave: WaveCounts) -> int:
        """The tokens of a wave's prompts where nobody has counted them."""
        return round(self.plan.num_prompt_tokens * wave.num_rows / max(1, self.plan.num_todo))

    def _keep(self, progress: Progress) -> None:
        waves = {number: astuple(counts) for number, counts in sorted(self._waves.items())}
        starts = [*self._starts, [astuple(point) for point in self._speed.points]]
        document = {"progress": asdict(progress), "waves": waves, "starts": starts}
        with _for_display():
            self.folder.files.write(self.folder.of(PROGRESS), json.dumps(document))


_SUMMED = ("rows", "tokens", "errors")


def read_kept(folder: PlanFolder) -> dict[str, Any]:
    """The content of progress.json, without the waves and starts that are not as this version keeps them; empty where
    there is none, or it cannot be read."""
    try:
        kept = json.loads(folder.files.read(folder.of(PROGRESS)) or "{}")
    except (ValueError, OSError, Py4JError):
        return {}
    if not isinstance(kept, dict):
        return {}
    progress, waves, starts = (kept.get(name) for name in ("progress", "waves", "starts"))
    found = {
        "progress": progress if isinstance(progress, dict) else {},
        "waves": {n: wave for n, wave in waves.items() if _is_wave(n, wave)} if isinstance(waves, dict) else {},
        "starts": [start for start in starts if _is_start(start)] if isinstance(starts, list) else [],
    }
    return {name: part for name, part in found.items() if part}


def _is_wave(number: str, wave: Any) -> bool:
    """Whether this is the list of a `WaveCounts`, whose last part alone is a text."""
    has_all = number.isdecimal() and isinstance(wave, list) and len(wave) == len(fields(WaveCounts))
    return has_all and all(map(_is_count, wave[:-1])) and isinstance(wave[-1], str)


def _is_start(start: Any) -> bool:
    """Whether this is a list of lists of `Point`s."""
    return isinstance(start, list) and all(
        isinstance(point, list) and len(point) == len(fields(Point)) and all(map(_is_count, point)) for point in start
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < MAX_COUNT  # no NaN


@contextlib.contextmanager
def _for_display() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of a file system, or of what is kept there
        log.debug("how far the run is could not be told", exc_info=error)


def _known(wave: Wave, kept: dict[str, Any]) -> WaveCounts:
    """What an earlier start has kept of a finished wave; its rows alone where that is nothing."""
    counts = kept.get("waves", {}).get(str(wave.number))
    return WaveCounts(wave.num_rows) if counts is None else WaveCounts(*counts)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
