"""Choosing each engine's best setting, and all engines in turn, round by round, with a probe around every run."""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.contest.engines import Engine, Options
from benchmarks.contest.launch import EngineFailed, Run, Started, TooSlow
from benchmarks.contest.probe import Probe
from benchmarks.contest.work import Row, Work

MAX_NOISE = 1.15
_HOPELESS = 1.25  # a setting that takes so many times as long as the best one is stopped


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

    def run(self, started: Started, rows: list[Row], limit_s: float | None = None) -> Run:
        """Run the rows while the machine is quiet, or as quiet as it gets."""
        runs: list[Run] = []
        for _ in range(self.tries):
            before = self.probe.measure()
            run = started.run(rows, limit_s)
            run.probes = (before, self.probe.measure())
            runs.append(run)
            if self.noise(run) <= MAX_NOISE:
                break
        self.num_discarded += len(runs) - 1
        self.kept.append(min(runs, key=self.noise))
        return self.kept[-1]

    def run_alone(self, engine: Engine, options: Options, rows: list[Row]) -> Run:
        """Run the rows in processes of their own, which end with it: no other engine holds memory meanwhile."""
        with self.start(engine, options) as started:
            return self.run(started, rows)

    @property
    def num_noisy(self) -> int:
        """Runs that were kept although the machine was busy beside them, as it is known now."""
        return sum(self.noise(run) > MAX_NOISE for run in self.kept)

    def noise(self, run: Run) -> float:
        """The worse of the two probes around a run, against the best there has been."""
        return max(self.probe.noise(found) for found in run.probes or ())


@dataclass
class Duel:
    """Another engine's runs, and those of ours that they are paired with, one of each a round.

    Ours answers the same rows, unless the other is `steady`: then ours answers all rows, the other `rows`.
    """

    engine: Engine
    options: Options
    rows: list[Row]
    ours: list[Run] = field(default_factory=list)
    theirs: list[Run] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The median of the paired ratios of answer tokens a second."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return statistics.median(ours.tokens_per_s / theirs.tokens_per_s for ours, theirs in pairs)

    @property
    def ratio_of_rows(self) -> float:
        """The same of rows a second: another number where answers end by themselves."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return statistics.median(ours.rows_per_s / theirs.rows_per_s for ours, theirs in pairs)


def choose(course: Course, engine: Engine) -> tuple[Options, float]:
    """The engine's best setting and its rows a second in the trial; raises EngineFailed if none works."""
    if engine.without:
        raise EngineFailed(engine.without)
    rows = course.work.sample(max(4, round(engine.trial_rows * course.scale)))
    best = dict(engine.defaults)
    runs: dict[str, Run] = {}
    for alternatives in engine.choices:
        tried = {str(i): {**best, **alternative} for i, alternative in enumerate(alternatives)}
        for options in tried.values():
            if str(options) not in runs:
                _try(course, engine, options, rows, runs)
        best = max(tried.values(), key=lambda options: _speed(runs, options))
    if not _speed(runs, best):
        raise EngineFailed(f"{engine.name} runs in none of its settings")
    return best, _speed(runs, best)


def play_round(course: Course, ours: tuple[Engine, Options], duels: Sequence[Duel]) -> tuple[Run, dict[str, str]]:
    """Ours on all rows, then each other engine, where it needs that with ours on the same rows just before it.

    Returns the run of ours on all rows, and by engine why one failed. Such a duel has no run of this round.
    """
    failed: dict[str, str] = {}
    on_all = course.run_alone(*ours, course.work.rows)
    say(f"  {ours[0].name}: {_found(on_all)}")
    for duel in duels:
        is_sample = len(duel.rows) < len(course.work.rows)
        try:
            if is_sample and not duel.engine.is_steady:
                beside = course.run_alone(*ours, duel.rows)
            else:
                beside = on_all
            theirs = course.run_alone(duel.engine, duel.options, duel.rows)
        except EngineFailed as error:
            say(f"  {error}")
            failed[duel.engine.name] = str(error).splitlines()[0]
            continue
        duel.ours.append(beside)
        duel.theirs.append(theirs)
        say(f"  {duel.engine.name}: {_found(theirs)}; ours: {_found(beside)}")
    return on_all, failed


def rows_for(course: Course, engine: Engine, rows_per_s: float, seconds: float) -> list[Row]:
    """As many rows as an engine of that speed answers in so many seconds, all of them if it can."""
    return course.work.sample(max(engine.min_rows, round(seconds * rows_per_s)))


def say(line: str) -> None:
    """Tell how far it is: on stderr, so that stdout holds the tables alone."""
    print(line, file=sys.stderr, flush=True)


def _try(course: Course, engine: Engine, options: Options, rows: list[Row], runs: dict[str, Run]) -> None:
    """Add the run of one setting to `runs` if it works, and is not hopeless beside the best one."""
    limit_s = _HOPELESS * min(run.seconds for run in runs.values()) if runs else None
    said = f"  {engine.name} {_brief(options)}:"
    try:
        with course.start(engine, options) as started:
            runs[str(options)] = course.run(started, rows, limit_s)
    except TooSlow as slow:
        say(f"{said} {slow}")
    except EngineFailed as error:
        say(f"  {error}")
    else:
        say(f"{said} {_found(runs[str(options)])}")


def _speed(runs: dict[str, Run], options: Options) -> float:
    """Rows a second, 0 for a setting that does not work or was stopped."""
    run = runs.get(str(options))
    return run.rows_per_s if run else 0.0


def _found(run: Run) -> str:
    return f"{run.rows_per_s:.2f} rows/s, {run.tokens_per_s:.0f} tokens/s on {run.num_rows} rows"


def _brief(options: Options) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items())
