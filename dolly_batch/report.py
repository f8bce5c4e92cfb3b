"""The run's numbers: what is shown while it goes, what is said at its end, and `report.json`."""

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

ERROR_STATUSES = ("too_long", "bad_encoding", "duplicate_id", "out_of_memory", "model_error", "invalid_output")
STAND_IN = (
    "note: `tiny` is a stand-in that knows the questions of the sample table and little else; "
    "name a real model: --set model.path=databricks/dolly-v2-3b"
)
STATUSES = ("ok", "truncated", "empty_response", "null_instruction", "empty_instruction", *ERROR_STATUSES)


@dataclass
class Report:
    """One start of a job, in numbers. `outcome` is `complete`, `nothing_to_do`, `planned` ... or a fault's name."""

    name: str
    outcome: str = "started"
    exit_code: int = 5
    message: str = ""
    plan_id: str | None = None
    output: str | None = None
    model: str | None = None
    model_revision: str | None = None
    num_input_rows: int = 0
    num_held_rows: int = 0
    """Rows that the output held already."""
    num_published_rows: int = 0
    num_answered_by_model: int = 0
    by_status: dict[str, int] = field(default_factory=dict)
    error_share: float = 0.0
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0
    num_continued_rows: int = 0
    """Truncated answers that were gone on with, by `--retry truncated`."""
    num_restarted_rows: int = 0
    """Those of them that had to be begun anew, since their text does not tell their tokens."""
    num_begun_tokens: int = 0
    """Answer tokens that were taken over from the output, and not generated again."""
    model_loads: int = 0
    token_histogram: dict[str, int] = field(default_factory=dict)
    estimated_s: float | None = None
    num_waves: int = 0
    num_resumed_waves: int = 0
    """Waves that earlier starts had finished."""
    num_shards: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by stage: session, plan, generate, publish, audit."""

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    def judge_errors(self, max_error_share: float) -> None:
        """Set the error share, and the exit code of a complete run by it."""
        num_rows = sum(self.by_status.values())
        num_errors = sum(self.by_status.get(status, 0) for status in ERROR_STATUSES)
        self.error_share = num_errors / num_rows if num_rows else 0.0
        self.exit_code = 3 if self.error_share > max_error_share else 0


class Timed(Protocol):
    """A report with the wall time of stages."""

    seconds: dict[str, float]


class Stopwatch:
    """Adds the wall time of a `with` block to a report."""

    def __init__(self, report: Timed, stage: str) -> None:
        self._report = report
        self._stage = stage

    def __enter__(self) -> None:
        """Start."""
        self._started = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        """Stop, whatever happened."""
        passed = time.monotonic() - self._started
        self._report.seconds[self._stage] = round(self._report.seconds.get(self._stage, 0.0) + passed, 3)


class ProgressLine:
    """One live line on a terminal: rows done of all, answer tokens per second, time left. Silent elsewhere."""

    def __init__(self, total: int, label: str = "answering", console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn(label),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} rows"),
            TaskProgressColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._progress.add_task(label, total=total, speed="")
        self._first: tuple[float, int] | None = None

    def __enter__(self) -> "ProgressLine":
        """Start drawing."""
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        """Take the line away."""
        self._progress.stop()

    def update(self, num_rows: int, num_tokens: int) -> None:
        """Show how far it is."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, num_tokens)
        passed = now - self._first[0]
        speed = f"{(num_tokens - self._first[1]) / passed:,.0f} tokens/s" if passed > 1 else ""
        self._progress.update(self._task, completed=num_rows, speed=speed)


def say(text: str) -> None:
    """One line for a person, on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(text))


def print_summary(report: Report) -> None:
    """The end of a run, for a person."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(report.message))
    if report.by_status:
        table = Table("status", "rows", box=None, pad_edge=False)
        table.columns[1].justify = "right"
        for status, count in sorted(report.by_status.items(), key=lambda item: -item[1]):
            table.add_row(status, f"{count:,}")
        console.print(table)
    if report.num_resumed_waves:  # how long the earlier starts took, nobody knows; so there is no speed
        console.print(
            Text(
                f"{report.num_completion_tokens:,} answer tokens, {report.model_loads} model load(s); "
                f"{report.num_resumed_waves} of {report.num_waves} waves were finished by earlier starts"
            )
        )
    elif report.num_completion_tokens and report.seconds.get("generate"):
        speed = report.num_completion_tokens / report.seconds["generate"]
        console.print(
            Text(
                f"{report.num_completion_tokens:,} answer tokens in {report.seconds['generate']:.1f} s "
                f"({speed:,.0f} a second, model loading included), {report.model_loads} model load(s)"
            )
        )
    if report.num_continued_rows or report.num_restarted_rows:
        console.print(
            Text(
                f"{report.num_continued_rows:,} truncated answers were gone on with, {report.num_begun_tokens:,} of "
                f"their tokens taken over; {report.num_restarted_rows:,} were begun anew"
            )
        )
    if report.output:
        console.print(Text(f"output: {report.output}"))
    if report.model == "tiny":
        console.print(Text(STAND_IN))


def print_plan(report: Report) -> None:
    """A plan before it is run, for a person."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(report.message))
    table = Table("prompt tokens", "rows to answer", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for bounds, count in report.token_histogram.items():
        table.add_row(bounds, f"{count:,}")
    console.print(table)
    for status, count in sorted(report.by_status.items()):
        console.print(Text(f"set aside as {status}: {count:,} rows"))
    if report.estimated_s is not None:
        console.print(
            Text(f"estimated time: {_duration(report.estimated_s)} (a rough reckoning; plan.tokens_per_s sets it)")
        )


def print_rows(names: list[str], rows: Iterable[Iterable[object]]) -> None:
    """Some rows of a table, for a person."""
    console = Console(highlight=False)
    if not sys.stdout.isatty():
        console = Console(highlight=False, width=140)
    table = Table(*names, show_lines=True)
    for row in rows:
        table.add_row(*(Text("" if value is None else _one_line(str(value))) for value in row))
    console.print(table)


def _one_line(text: str, limit: int = 300) -> str:
    """A cell for the eye: control characters made visible, long text shortened."""
    shown = "".join(c if c == "\n" or c.isprintable() or c in " \u200d\ufe0f" else "\ufffd" for c in text)
    return shown if len(shown) <= limit else shown[:limit] + " ..."


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
