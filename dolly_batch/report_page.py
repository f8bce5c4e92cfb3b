"""The plans of a work folder for people: a table on the terminal, and `report.html`, one page by itself."""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

_HEADER = ("job", "planned (UTC)", "state", "rows", "answered", "errors", "answer tokens", "tokens/s", "time")
_NUMBERS_FROM = 3  # columns from here on are numbers
_STAGES = ("session", "plan", "generate", "publish", "audit")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.05rem; margin: 2.2rem 0 .2rem } p { margin: .2rem 0; color: #55616e }
table { border-collapse: collapse; margin: .6rem 0 } th, td { padding: .25rem .8rem .25rem 0; text-align: left }
th { font-weight: 600; border-bottom: 1px solid #cfd6dd } .n { text-align: right; font-variant-numeric: tabular-nums }
.parts { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 0 3rem }
.bar { width: 9rem } .bar i { display: block; height: .7rem;
background: #2f6fb3; min-width: 1px } .error i { background: #b3402f }
"""


@dataclass(frozen=True)
class PlanFacts:
    """One plan as it stands; `report` is its report.json, empty before it is complete."""

    plan_id: str
    name: str
    created_at: str
    """ISO 8601, UTC."""
    state: str
    model: str
    num_input_rows: int
    num_answered: int
    num_todo: int
    token_histogram: dict[str, int] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def cells(self) -> tuple[str, ...]:
        """A line of the table, in the order of its header."""
        seconds = self.report.get("seconds", {})
        tokens, generating = self.report.get("num_completion_tokens"), seconds.get("generate")
        # Of a resumed run nobody knows how long its earlier starts took.
        whole = tokens and generating and not self.report.get("num_resumed_waves")
        share = self.report.get("error_share")
        return (
            self.name,
            self.created_at[:16].replace("T", " "),
            self.state,
            f"{self.num_input_rows:,}",
            f"{self.num_answered:,} of {self.num_todo:,}",
            "" if share is None else f"{share:.1%}",
            "" if tokens is None else f"{tokens:,}",
            f"{tokens / generating:,.0f}" if whole else "",
            f"{sum(seconds.values()):,.0f} s" if seconds else "",
        )


def print_plans(plans: Sequence[PlanFacts]) -> None:
    """The plans on the terminal, a line each."""
    table = Table(*_HEADER, box=None, pad_edge=False)
    for column in table.columns[_NUMBERS_FROM:]:
        column.justify = "right"
    for plan in plans:
        table.add_row(*(Text(cell) for cell in plan.cells))
    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=140)
    console.print(table)


def plans_page(title: str, plans: Sequence[PlanFacts], error_statuses: Sequence[str]) -> str:
    """The page. Names come from job files, so they are escaped; it holds no prompts and no answers."""
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{html.escape(title)}</title>",
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>",
        _table(_HEADER, [plan.cells for plan in plans], _NUMBERS_FROM),
    ]
    for plan in plans:
        parts += _sections(plan, error_statuses)
    return "\n".join(parts) + "\n"


def _sections(plan: PlanFacts, error_statuses: Sequence[str]) -> Iterator[str]:
    report = plan.report
    yield f"<h2>{html.escape(plan.name)}: {html.escape(plan.plan_id)}</h2>"
    facts = [plan.state, f"model {plan.model}"]
    if report:
        facts += [f"loaded {report.get('model_loads', 0)} time(s)", f"output {report.get('output')}"]
    yield f"<p>{html.escape(', '.join(facts))}</p><div class=parts>"
    # JSON has put their names in the order of the alphabet.
    by_status = dict(sorted(report.get("by_status", {}).items(), key=lambda item: -item[1]))
    lengths = dict(sorted(plan.token_histogram.items(), key=lambda item: (item[0][0], int(item[0].split()[-1]))))
    seconds = report.get("seconds", {})
    yield _bars("status", by_status, error_statuses)
    yield _bars("prompt tokens", lengths)
    yield _bars("seconds", {stage: round(seconds[stage], 1) for stage in _STAGES if stage in seconds})
    yield "</div>"


def _bars(name: str, values: Mapping[str, float], errors: Sequence[str] = ()) -> str:
    """A small table with a bar for each number; nothing where there is none."""
    if not values:
        return ""
    largest = max(values.values()) or 1
    lines = [
        f"<tr{' class=error' if label in errors else ''}><td>{html.escape(label)}<td class=n>{value:,}"
        f"<td class=bar><i style='width:{100 * value / largest:.1f}%'></i>"
        for label, value in values.items()
    ]
    return f"<table><tr><th>{html.escape(name)}<th><th>{''.join(lines)}</table>"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]], numbers_from: int) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        shown = [
            f"<{tag}{' class=n' if at >= numbers_from else ''}>{html.escape(cell)}" for at, cell in enumerate(cells)
        ]
        return f"<tr>{''.join(shown)}"

    return f"<table>{row(header, 'th')}{''.join(row(line, 'td') for line in lines)}</table>"
