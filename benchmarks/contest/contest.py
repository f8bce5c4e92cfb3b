"""Choosing each engine's best setting, and pairs of engines in turn: A/B/A/B, with a probe around every run."""

import statistics
import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.contest.engines import Engine, Options
from benchmarks.contest.launch import EngineFailed, Run, Started
from benchmarks.contest.probe import Probe
from benchmarks.contest.work import Row, Work

MAX_NOISE = 1.15


@dataclass
class Course:
    """Where engines run: the work, the probe, and how much is spent on each.

    `scale` multiplies the rows of a choice; `tries` is how often a run is made when its probes say that the machine was
    busy. `num_discarded` runs were made again; of those `kept` some may be noisy nevertheless: the quietest of all
    tries.
    """

    work: Work
    probe: Probe
    python: Path
    folder: Path
    scale: float = 1.0
    tries: int = 3
    num_discarded: int = 0
    kept: list[Run] = field(default_factory=list)

    def start(self, engine: Engine, options: Options) -> Started:
        """Start an engine; it is loaded and has answered something when this returns."""
        started = Started(engine, options, self.python, self.folder)
        try:
            started.run([Row(f"warm{i}", tuple(range(i + 1, i + 25)), 4) for i in range(4)])
        except BaseException:
            started.close()
            raise
        return started

    def run(self, started: Started, rows: list[Row]) -> Run:
        """Run the rows while the machine is quiet, or as quiet as it gets."""
        runs: list[Run] = []
        for _ in range(self.tries):
            before = self.probe.measure()
            run = started.run(rows)
            run.probes = (before, self.probe.measure())
            runs.append(run)
            if self.noise(run) <= MAX_NOISE:
                break
        self.num_discarded += len(runs) - 1
        self.kept.append(min(runs, key=self.noise))
        return self.kept[-1]

    @property
    def num_noisy(self) -> int:
        """Runs that were kept although the machine was busy beside them, as it is known now."""
        return sum(self.noise(run) > MAX_NOISE for run in self.kept)

    def noise(self, run: Run) -> float:
        """The worse of the two probes around a run, against the best there has been."""
        return max(self.probe.noise(found) for found in run.probes or ())


@dataclass
class Duel:
    """Ours against another engine, in turn, on the same rows."""

    engine: Engine
    options: Options
    rows: list[Row]
    ours: list[Run] = field(default_factory=list)
    theirs: list[Run] = field(default_factory=list)
    ours_on_all: list[Run] = field(default_factory=list)
    """Where theirs goes row by row and answers fewer rows than there are: ours on all of them, once a round."""

    @property
    def ratio(self) -> float:
        """The median of the paired ratios, same rows on both sides."""
        return _paired(self.ours, self.theirs)

    @property
    def ratio_on_all(self) -> float:
        """The same with ours on all rows, where theirs goes row by row through a sample of them."""
        return _paired(self.ours_on_all or self.ours, self.theirs)


def choose(course: Course, engine: Engine) -> tuple[Options, float]:
    """The engine's best setting and its answer tokens a second in the trial; raises EngineFailed if none works."""
    if engine.without:
        raise EngineFailed(engine.without)
    rows = course.work.sample(max(4, round(engine.trial_rows * course.scale)))
    best = dict(engine.defaults)
    speeds: dict[str, float] = {}
    for alternatives in engine.choices:
        tried = {str(i): {**best, **alternative} for i, alternative in enumerate(alternatives)}
        for options in tried.values():
            if str(options) not in speeds:
                speeds[str(options)] = _speed(course, engine, options, rows)
                say(f"  {engine.name} {_brief(options)}: {speeds[str(options)]:.0f} tokens/s on {len(rows)} rows")
        best = max(tried.values(), key=lambda options: speeds[str(options)])
    if not speeds[str(best)]:
        raise EngineFailed(f"{engine.name} runs in none of its settings")
    return best, speeds[str(best)]


def duel(
    course: Course, ours: tuple[Engine, Options], theirs: Engine, options: Options, rows: list[Row], rounds: int
) -> Duel:
    """Run both in turn, so many rounds."""
    result = Duel(theirs, options, rows)
    is_sample = len(rows) < len(course.work.rows)
    with course.start(*ours) as our_engine, course.start(theirs, options) as their_engine:
        for _ in range(rounds):
            result.ours.append(course.run(our_engine, rows))
            result.theirs.append(course.run(their_engine, rows))
            if is_sample and theirs.is_row_by_row:
                result.ours_on_all.append(course.run(our_engine, course.work.rows))
            speeds = [runs[-1].tokens_per_s for runs in (result.theirs, result.ours)]
            say(f"  {theirs.name}: {speeds[0]:.0f}, ours {speeds[1]:.0f} tokens/s on {len(rows)} rows")
    return result


def rows_for(course: Course, engine: Engine, tokens_per_s: float, seconds: float) -> list[Row]:
    """As many rows as an engine of that speed answers in so many seconds, all of them if it can."""
    mean_tokens = statistics.fmean(row.num_new_tokens for row in course.work.rows)
    return course.work.sample(max(round(engine.min_rows * course.scale), round(seconds * tokens_per_s / mean_tokens)))


def say(line: str) -> None:
    """Tell how far it is: on stderr, so that stdout holds the tables alone."""
    print(line, file=sys.stderr, flush=True)


def _speed(course: Course, engine: Engine, options: Options, rows: list[Row]) -> float:
    """Answer tokens a second, 0 for a setting that does not work."""
    try:
        with course.start(engine, options) as started:
            return course.run(started, rows).tokens_per_s
    except EngineFailed as error:
        say(f"  {error}")
        return 0.0


def _paired(ours: list[Run], theirs: list[Run]) -> float:
    return statistics.median(a.tokens_per_s / b.tokens_per_s for a, b in zip(ours, theirs, strict=False))


def _brief(options: Options) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())
