"""Whole pages: of one plan, of all plans of a work folder; and a report as a notebook shows it."""

from collections.abc import Sequence

from dolly_batch.page.html import Html, joined, tag
from dolly_batch.page.plan import error_note, numbers, plan_body, stage_bars, status_bars
from dolly_batch.page.style import STYLE
from dolly_batch.report import PlanReport, Report, duration

MAX_WHOLE = 20
"""Plans that are shown whole; the others are lines of the table."""
_HEADER = ("job", "planned (UTC)", "state", "rows", "answered", "errors", "cost", "time")
_FIRST_NUMBER = 3


def plan_page(plan: PlanReport) -> str:
    """The page of one plan."""
    return _document(f"{plan.name}: dolly_batch report", plan_body(plan))


def plans_page(title: str, plans: Sequence[PlanReport]) -> str:
    """All plans of a work folder, newest first: a table, and the newest ones whole."""
    rows = (tag("tr", *(tag("td", cell, class_=_side(n)) for n, cell in enumerate(_cells(plan)))) for plan in plans)
    header = tag("tr", *(tag("th", name, class_=_side(n)) for n, name in enumerate(_HEADER)))
    table = tag("div", tag("table", header, *rows, class_="figures"), class_="scroll")
    whole = [
        tag(
            "details",
            tag("summary", f"{plan.name}, {plan.created_at[:16].replace('T', ' ')}"),
            plan_body(plan, "h2"),
            open="" if at == 0 else None,
        )
        for at, plan in enumerate(plans[:MAX_WHOLE])
    ]
    return _document(title, joined(tag("h1", title), tag("section", table), *whole))


def _side(column: int) -> str | None:
    return "left" if column < _FIRST_NUMBER else None


def _cells(plan: PlanReport) -> tuple[str, ...]:
    """A line of the table, in the order of `_HEADER`."""
    report = plan.report
    cost, seconds = report.get("cost"), report.get("seconds", {})
    return (
        *plan.listed,
        "" if cost is None else f"{cost:,.2f}",
        duration(sum(seconds.values())) if seconds else "",
    )


def report_card(report: Report) -> str:
    """A report as a notebook shows it: the message, the numbers, rows by status, time by step."""
    shown = [(f"{report.num_input_rows:,}", "input rows", ""), (f"{report.num_asked:,}", "answered", "")]
    shown.append((f"{report.error_share:.1%}", "errors", "bad" if report.error_share else ""))
    if report.seconds:
        shown.append((duration(sum(report.seconds.values())), "wall time", ""))
    if report.cost is not None:
        shown.append((f"{report.cost:,.2f}", "cost", ""))
    parts = (
        ("Rows by status", status_bars(report.by_status)),
        ("Time by step", stage_bars(report.seconds)),
    )
    sections = (tag("section", tag("h2", title), content) for title, content in parts if content)
    kind = {0: "good", 3: "bad", 5: "bad"}.get(report.exit_code, "")
    head = tag("div", tag("h1", report.name), tag("span", report.outcome, class_=f"pill {kind}"), class_="head")
    notes = tag("div", error_note(report.by_status), class_="notes")
    grid = tag("div", *sections, class_="grid")
    body = tag("main", head, tag("p", report.message, class_="muted"), numbers(shown), notes, grid)
    return joined(tag("style", Html(STYLE)), tag("div", body, class_="dolly"))


def _document(title: str, body: Html) -> str:
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', body), class_='dolly'), lang='en')}\n"
