"""The page of one plan: what asks for attention first, then numbers, times, lengths, labels, and what ran."""

from collections.abc import Mapping, Sequence
from typing import Any

from dolly_batch.page.charts import Bar, bars, columns, compact, histogram, line
from dolly_batch.page.html import Html, joined, tag
from dolly_batch.page.times import slowest_tasks, speeds, wave_seconds
from dolly_batch.records import ERROR_STATUSES
from dolly_batch.report import STAGES, WHAT_TO_DO, PlanReport, duration, num_new_tokens

_KINDS = {"ok": "good", "truncated": "warn", "empty_response": "warn"}
MAX_LABELS = 40
_STRAGGLER = 1.5
"""Times the mean task: from there on the slowest one is worth a warning."""


def plan_body(plan: PlanReport, heading: str = "h1") -> Html:
    """Everything about one plan."""
    report, details = plan.report, plan.details
    sections = [
        _section("Rows by status", status_bars(report.get("by_status", {}))),
        _section("Checks", _checks(report), "answers that fail them"),
        _section("Time by step", stage_bars(report.get("seconds", {}))),
        _speed(plan),
        _waves(plan),
        _section("Prompt lengths", _lengths(plan.token_histogram), "tokens, of rows to answer"),
        _section("Answer lengths", _lengths(details.get("answer_lengths", {})), "tokens, of answered questions"),
        _labels(details.get("labels", [])),
        _section("Confidence", _lengths(details.get("confidences", {})), "of answered questions"),
        _look(plan),
        _ran(plan),
    ]
    return joined(
        _head(plan, heading), _numbers(plan), _notes(plan), tag("div", *(s for s in sections if s), class_="grid")
    )


def _head(plan: PlanReport, heading: str) -> Html:
    state = {"complete": "good", "abandoned": ""}.get(plan.state, "bad" if "not audited" in plan.state else "")
    tags = plan.report.get("tags") or plan.details.get("tags") or {}
    model = f"{plan.model}{f' at {plan.model_revision[:16]}' if plan.model_revision else ''}"
    return joined(
        tag(
            "div",
            tag(heading, plan.name),
            tag("span", plan.state, class_=f"pill {state}".strip()),
            *(tag("span", f"{name}={value}", class_="chip") for name, value in sorted(tags.items())),
            class_="head",
        ),
        tag("p", model, ", planned ", plan.created_at[:16].replace("T", " "), " UTC", class_="muted"),
    )


def _numbers(plan: PlanReport) -> Html:
    report = plan.report
    shown = [(f"{plan.num_input_rows:,}", "input rows", ""), (f"{plan.num_answered:,}", "answered", "")]
    if report:
        share = report.get("error_share", 0.0)
        shown.append((f"{share:.1%}", "errors", "bad" if share else ""))
    generate_s = report.get("seconds", {}).get("generate")
    if generate_s and not report.get("num_resumed_waves"):
        shown.append((f"{plan.num_answered / generate_s:,.1f}", "rows/s", ""))
        if tokens := num_new_tokens(report):
            shown.append((f"{tokens / generate_s:,.0f}", "answer tokens/s", ""))
    if report:
        shown.append((compact(report.get("num_read_tokens", 0)), "tokens in", ""))
        if report.get("num_generated_tokens"):
            shown.append((compact(report["num_generated_tokens"]), "tokens out", ""))
        shown.append((duration(sum(report.get("seconds", {}).values())), "wall time", ""))
    if report.get("gpu_hours"):
        shown.append((_hours(report["gpu_hours"]), "GPU time", ""))
    if report.get("cost") is not None:
        shown.append((f"{report['cost']:,.2f}", "cost", ""))
    return numbers(shown)


def numbers(shown: Sequence[tuple[str, str, str]]) -> Html:
    """Figures side by side: each with its name, and a kind (a class of style.py)."""
    cells = (tag("div", tag("b", value), tag("span", name), class_=f"number {kind}") for value, name, kind in shown)
    return tag("div", *cells, class_="numbers")


def _hours(hours: float) -> str:
    return duration(hours * 3600) if hours < 10 else f"{hours:,.1f} h"


def _notes(plan: PlanReport) -> Html:
    """What asks for attention: the commonest error, and the slowest task."""
    return tag("div", error_note(plan.report.get("by_status", {})), _task_note(plan), class_="notes")


def error_note(by_status: Mapping[str, int]) -> Html | None:
    """The commonest error, and what helps."""
    if not by_status:
        return None
    errors = {status: count for status, count in by_status.items() if status in ERROR_STATUSES}
    if not errors:
        return _note("good", "Errors", "none", "Every row has its answer, or nothing to ask.")
    status = max(errors, key=lambda name: errors[name])
    share = errors[status] / sum(by_status.values())
    others = sum(errors.values()) - errors[status]
    said = f"{errors[status]:,} rows, {share:.1%} of all" + (f"; {others:,} rows have other errors" if others else "")
    return _note("bad", "Commonest error", status, f"{said}. What helps: {WHAT_TO_DO[status]}.")


def _task_note(plan: PlanReport) -> Html | None:
    tasks = slowest_tasks(plan.progress)
    if not tasks:
        return None
    first = tasks[0]
    where = f" on {first.host}" if first.host else ""
    times = f", {first.times_mean:.1f} times the mean of {first.num_tasks:,} tasks" if first.num_tasks > 1 else ""
    kind = "warn" if first.num_tasks > 1 and first.times_mean >= _STRAGGLER else ""
    said = f"{duration(first.seconds)}{times}{where}. The first task of an engine loads the model."
    return _note(kind, "Slowest task", f"wave {first.wave}, task {first.task}", said)


def _note(kind: str, title: str, name: str, said: str) -> Html:
    return tag("div", tag("h3", title), tag("b", name), tag("p", said), class_=f"note {kind}".strip())


def _section(title: str, content: Html | None, said: str = "", *, wide: bool = False) -> Html | None:
    if not content:
        return None
    heading = tag("h2", title, tag("small", said) if said else None)
    return tag("section", heading, content, class_="wide" if wide else None)


def status_bars(by_status: Mapping[str, int]) -> Html | None:
    """Rows by status, most first."""
    total = sum(by_status.values())
    if not total:
        return None
    largest_first = sorted(by_status.items(), key=lambda item: -item[1])
    kinds = dict.fromkeys(ERROR_STATUSES, "bad") | _KINDS
    return bars([Bar(name, n, f"{n:,} ({n / total:.1%})", kinds.get(name, "")) for name, n in largest_first])


def _checks(report: Mapping[str, Any]) -> Html | None:
    total, checks = report.get("num_checked_rows", 0), report.get("checks", {})
    said = {name: f"{count:,} ({count / max(1, total):.1%})" for name, count in checks.items()}
    return bars([Bar(name, count, said[name], "warn") for name, count in checks.items()]) if checks else None


def stage_bars(seconds: Mapping[str, float]) -> Html | None:
    """Wall time by step."""
    return bars([Bar(s, seconds[s], duration(seconds[s])) for s in STAGES if s in seconds]) if seconds else None


def _speed(plan: PlanReport) -> Html | None:
    unit, segments, end_s = speeds(plan.progress)
    if not any(len(segment) > 1 for segment in segments):
        return None
    chart = line(segments, lambda value: f"{compact(value) if value >= 10 else f'{value:.3g}'} {unit}", duration(end_s))
    said = f"{len(segments)} starts, without the time between them" if len(segments) > 1 else "from the first rows on"
    return _section("Speed over time", chart, said, wide=True)


def _waves(plan: PlanReport) -> Html | None:
    waves = wave_seconds(plan.progress)
    tasks = slowest_tasks(plan.progress)
    if not waves or not tasks:
        return None
    longest = max(waves, key=lambda wave: waves[wave])
    drawn = [Bar(f"wave {w}", s, duration(s), "warn" if w == longest else "") for w, s in waves.items()]
    chart = columns(drawn, f"wave {min(waves)}", f"wave {max(waves)}") if len(waves) > 1 else None
    rows = [
        tag(
            "tr",
            *(
                tag("td", text)
                for text in (f"wave {t.wave}, task {t.task}", duration(t.seconds), f"{t.times_mean:.1f}")
            ),
            tag("td", t.host, class_="left"),
        )
        for t in tasks[:5]
    ]
    named = (tag("th", text) for text in ("slowest tasks, by wave", "time", "times the mean"))
    header = tag("tr", *named, tag("th", "machine", class_="left"))
    table = tag("div", tag("table", header, *rows, class_="figures"), class_="scroll")
    said = f"longest: wave {longest}, {duration(waves[longest])}; several run at once"
    return _section("Time of each wave", joined(chart, table), said, wide=True)


def _lengths(counts: Mapping[str, int]) -> Html | None:
    # Sorted again: JSON files may have their keys in alphabetical order.
    in_order = sorted(counts.items(), key=lambda item: (item[0].startswith(">"), float(item[0].split()[-1])))
    named = {name.replace("<=", "≤"): count for name, count in in_order}
    return histogram(named) if any(counts.values()) else None


def _labels(labels: Sequence[Sequence[Any]]) -> Html | None:
    if not labels:
        return None
    drawn = [
        Bar("none" if label is None else label, count, f"{count:,}{'' if mean is None else f', {mean:.0%} sure'}")
        for label, count, mean in labels[:MAX_LABELS]
    ]
    said = "answered questions (rows that ask the same are one), and the mean confidence"
    if len(labels) > MAX_LABELS:
        said += f"; the commonest {MAX_LABELS} of {len(labels)}"
    return _section("Labels", bars(drawn), said)


def _look(plan: PlanReport) -> Html | None:
    look: Mapping[str, Sequence[str | None]] = plan.details.get("look", {})
    parts = []
    for status, ids in look.items():
        told = [tag("code", shown) for shown in ids if shown is not None]
        hidden = len(ids) - len(told)
        rest = plan.report.get("by_status", {}).get(status, len(ids)) - len(ids)
        more = [f"{hidden} whose ids may name a person"] * bool(hidden) + [f"{rest:,} more"] * (rest > 0)
        said = tag("span", f"{'and ' if told else ''}{', '.join(more)}", class_="muted") if more else None
        parts.append(tag("tr", tag("th", status), tag("td", *told, said, class_="ids")))
    content = tag("table", *parts, class_="facts") if parts else None
    return _section("Rows that need a look", content, "some ids of each; no text is kept here", wide=True)


def _ran(plan: PlanReport) -> Html | None:
    ran: Mapping[str, Mapping[str, Any]] = plan.details.get("ran", {})
    rows = [tag("tr", tag("th", "plan"), tag("td", tag("code", plan.plan_id)))]
    for part, values in ran.items():
        said = (f"{name} {value}" for name, value in values.items() if value not in (None, ""))
        rows.append(tag("tr", tag("th", part), tag("td", ", ".join(said))))
    if not ran:
        rows.append(tag("tr", tag("th", "model"), tag("td", plan.model)))
    return _section("What ran", tag("table", *rows, class_="facts"), wide=True)
