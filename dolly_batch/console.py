"""Everything that is printed for people."""

import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as LiveLine
from rich.table import Table
from rich.text import Text

from dolly_batch.evaluate.report import EvaluateReport
from dolly_batch.report import STAGES, WHAT_TO_DO, PlanReport, Progress, Report, duration, num_new_tokens

_MODEL_NOTES = {
    "tiny": "note: `tiny` is a small stand-in that can answer little beyond its sample tables; "
    "name a real model: --set model.path=smollm2",
    "smollm2": "note: the answers are of SmolLM2-135M-Instruct (`smollm2`), about the smallest model there is; a "
    "bigger one answers better, for example on a GPU --set model.path=databricks/dolly-v2-3b",
}
_WIDTH = 140  # where the output is not a terminal
_NUMBERS_WIDTH = 160  # a table of numbers is easier to read with wrapped lines than with wrapped cells
_PLAN_COLUMNS = ("job", "planned (UTC)", "state", "rows", "answered", "errors", "answer tokens", "tokens/s", "time")


class Printer(Console):
    """A console whose reader may go away (`| head`), or whose disk be full: what is told of a run never ends it."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich does."""
        with suppress(OSError):
            super().print(*objects, **options)

    def on_broken_pipe(self) -> None:
        """Rich itself ends the process here."""
        self.quiet = True


def say(text: str) -> None:
    """Print one line on standard error."""
    Printer(stderr=True, highlight=False, soft_wrap=True).print(Text(text))


@contextmanager
def standard_output() -> Iterator[None]:
    """Standard output while a command runs: letters that its encoding lacks are escaped, as on standard error. At the
    end what is left is printed; that nobody reads it any more is no fault of the command, nor of Python when it ends.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_line(text: str) -> None:
    """Print one line on standard output, as it is."""
    try:
        print(text, flush=True)  # noqa: T201 - rich would wrap it
    except OSError as error:
        say(f"standard output cannot be written: {error.strerror}")


class ProgressLine:
    """One live line on a terminal: rows done of all, the speed, the time left. Silent elsewhere."""

    def __init__(self, total: int, label: str = "answering", console: Console | None = None) -> None:
        console = console or Printer(stderr=True)
        self._line = LiveLine(
            TextColumn(label),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} rows"),
            TaskProgressColumn(),
            TextColumn("{task.fields[pace]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._line.add_task(label, total=total, pace="")
        self._total = total
        self._first: tuple[float, int, int] | None = None

    @property
    def is_live(self) -> bool:
        """Whether anybody sees it."""
        return not self._line.disable

    def __enter__(self) -> "ProgressLine":
        """Start drawing."""
        self._line.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        """Remove the line."""
        self._line.stop()

    def show(self, progress: Progress) -> None:
        """Show how far a run is."""
        self._line.update(self._task, completed=progress.num_rows, pace=progress.pace)

    def update(self, num_rows: int, num_tokens: int) -> None:
        """Show the rows and tokens so far, of rows that take about the same time each."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, num_rows, num_tokens)
        passed, rows, tokens = (a - b for a, b in zip((now, num_rows, num_tokens), self._first, strict=True))
        left = f", time left: {duration((self._total - num_rows) * passed / rows)}" if rows else ""
        pace = f"{tokens / passed:,.0f} tokens/s{left}" if passed > 1 else ""
        self._line.update(self._task, completed=num_rows, pace=pace)


def print_summary(report: Report) -> None:
    """Print how a run ended, or where a job stands."""
    write = _writer()
    write(report.message)
    if report.by_status:
        write(_counts("status", "rows", _largest_first(report.by_status)))
    for line in summary_lines(report):
        write(line)


def summary_lines(report: Report) -> list[str]:
    """The numbers of a run, and what to do about its errors."""
    lines = []
    if report.num_asked and "generate" in report.seconds:
        lines += [_speed_line(report), _wall_line(report)]
    if report.cost is not None:
        lines.append(f"cost: {report.cost:,.2f} for {report.gpu_hours:,.3g} GPU hours")
    if report.tags:
        lines.append(f"tags: {', '.join(f'{name}={value}' for name, value in sorted(report.tags.items()))}")
    if report.num_shared_rows:
        lines.append(f"{report.num_shared_rows:,} rows ask what another row asks, and got its answer")
    if report.answered_by:
        lines.append(_cascade_line(report))
    if report.num_continued_rows or report.num_restarted_rows:
        lines.append(
            f"resumed {report.num_continued_rows:,} truncated answers ({report.num_begun_tokens:,} tokens reused); "
            f"restarted {report.num_restarted_rows:,} from scratch"
        )
    lines += [
        f"check {name}: {count:,} of {report.num_checked_rows:,} answers fail ({count / report.num_checked_rows:.1%})"
        for name, count in report.checks.items()
        if count
    ]
    if report.checks and not any(report.checks.values()):
        lines.append(f"checks: all {report.num_checked_rows:,} answers pass {', '.join(report.checks)}")
    if report.num_rejected_rows:
        lines.append(f"{report.num_rejected_rows:,} rows with an error status were added to output.rejected too")
    lines += [
        f"{status} ({report.by_status[status]:,} rows): {todo}"
        for status, todo in WHAT_TO_DO.items()
        if report.by_status.get(status)
    ]
    if report.output:
        lines.append(f"output: {report.output}")
    if report.model in _MODEL_NOTES:
        lines.append(_MODEL_NOTES[report.model])
    return lines


def _speed_line(report: Report) -> str:
    """Rows, tokens and loads; speeds where this start has answered all of them."""
    counts = [
        (f"{report.num_asked:,} rows answered", report.num_asked, "rows/s"),
        (f"{report.num_read_tokens:,} tokens in", report.num_read_tokens, "tokens/s"),
        (f"{report.num_generated_tokens:,} tokens out", num_new_tokens(vars(report)), "tokens/s"),
    ]
    if report.num_resumed_waves:  # the report does not know how long the earlier starts took
        parts = [text for text, _, _ in counts]
        parts.append(f"{report.num_resumed_waves} of {report.num_waves} waves were finished by earlier starts")
    else:
        speeds = [number / report.seconds["generate"] for _, number, _ in counts]
        parts = [f"{counts[i][0]} ({speeds[i]:,.{0 if speeds[i] >= 100 else 1}f} {counts[i][2]})" for i in range(3)]
    return f"{', '.join(parts)}; {report.model_loads} model load(s)"


def _wall_line(report: Report) -> str:
    times = (f"{stage} {report.seconds[stage]:,.1f} s" for stage in STAGES if stage in report.seconds)
    return f"wall time: {', '.join(times)} (generate: model loading included)"


def _cascade_line(report: Report) -> str:
    """What a cascade has saved: different texts that the model was not asked about."""
    share = report.num_answered_by_proxy / report.num_asked if report.num_asked else 0.0
    by = report.answered_by
    return (
        f"rows answered by the model: {by.get('model', 0):,}, by the proxy: {by.get('proxy', 0):,}; "
        f"{report.num_answered_by_proxy:,} of {report.num_asked:,} calls of the model saved ({share:.1%})"
    )


def print_plan(report: Report) -> None:
    """Print a plan that was only counted."""
    write = _writer()
    write(report.message)
    write(_counts("prompt tokens", "rows to answer", report.token_histogram))
    for status, count in sorted(report.by_status.items()):
        write(f"skipped as {status}: {count:,} rows")
    if report.estimated_s is not None:
        write(f"estimated time: {duration(report.estimated_s)} (a rough estimate; plan.tokens_per_s corrects it)")


def print_rows(names: list[str], rows: Iterable[Iterable[object]]) -> None:
    """Print some rows of a table."""
    console = Printer(highlight=False) if sys.stdout.isatty() else Printer(highlight=False, width=_WIDTH)
    table = Table(*names, show_lines=True)
    for row in rows:
        table.add_row(*(Text("" if value is None else _cell(str(value))) for value in row))
    console.print(table)


def print_evaluation(report: EvaluateReport) -> None:
    """Print an evaluation's tables, except those that are too long for a terminal."""
    console = Printer(highlight=False)
    console = console if console.width >= _NUMBERS_WIDTH else Printer(highlight=False, width=_NUMBERS_WIDTH)
    for table in report.tables:
        if table.is_long:
            console.print(Text(f"{table.title}: {len(table.rows):,} lines, in {report.output}/results.md\n"))
        else:
            console.print(_table(table.header, table.rows, numbers_from=1, title=table.title))
            console.print()
    console.print(Text(report.message))
    if report.output:
        console.print(Text(f"output: {report.output}"))


def print_plans(plans: Sequence[PlanReport]) -> None:
    """Print the plans of a work folder, a line each."""
    console = Printer(highlight=False)
    console = console if console.is_terminal else Printer(highlight=False, width=_WIDTH)
    console.print(_table(_PLAN_COLUMNS, [_plan_cells(plan) for plan in plans], numbers_from=3))


def _plan_cells(plan: PlanReport) -> tuple[str, ...]:
    """A line of the table, in the order of `_PLAN_COLUMNS`."""
    seconds = plan.report.get("seconds", {})
    tokens = plan.report.get("num_generated_tokens", plan.report.get("num_completion_tokens"))
    generate_s = seconds.get("generate")
    # No speed of a resumed run: its report does not know how long the earlier starts took.
    has_speed = tokens and generate_s and not plan.report.get("num_resumed_waves")
    return (
        *plan.listed,
        "" if tokens is None else f"{tokens:,}",
        f"{(tokens - plan.report.get('num_begun_tokens', 0)) / generate_s:,.0f}" if has_speed else "",
        f"{sum(seconds.values()):,.0f} s" if seconds else "",
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int, title: str | None = None) -> Table:
    """A table without borders; columns from `numbers_from` on are aligned to the right."""
    table = Table(*header, title=title, title_justify="left", box=None, pad_edge=False)
    for column in table.columns[numbers_from:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _counts(name: str, unit: str, counts: Mapping[str, float]) -> Table:
    """A table of names and numbers."""
    return _table((name, unit), [(key, f"{value:,}") for key, value in counts.items()], numbers_from=1)


def _largest_first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _writer() -> Callable[[str | Table], None]:
    """Prints text, or a table, on standard output; markup in the text means nothing."""
    console = Printer(highlight=False, soft_wrap=True)
    return lambda part: console.print(Text(part) if isinstance(part, str) else part)


def _cell(text: str, max_chars: int = 300) -> str:
    """Text for one cell: control characters made visible, long text shortened."""
    shown = "".join(c if c == "\n" or c.isprintable() or c in " \u200d\ufe0f" else "\ufffd" for c in text)
    return shown if len(shown) <= max_chars else shown[:max_chars] + " ..."
