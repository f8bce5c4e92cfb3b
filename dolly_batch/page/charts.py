"""Charts of HTML and SVG that fit any width: shapes are stretched, words are not."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dolly_batch.page.html import Html, joined, tag

Number = int | float
_WIDTH, _HEIGHT = 1000, 200


@dataclass(frozen=True)
class Bar:
    """One bar: what it is, how much, what is said beside it, and its kind (a class of style.py)."""

    name: str
    value: Number
    said: str
    kind: str = ""


def bars(items: Sequence[Bar]) -> Html:
    """Lines of a name, a bar, and what is said of it."""
    largest = max((item.value for item in items), default=0) or 1
    return tag("div", *(_line(item, largest) for item in items), class_="bars")


def _line(item: Bar, largest: Number) -> Html:
    share = max(0.5, 100 * item.value / largest) if item.value else 0
    return tag(
        "div",
        tag("span", item.name, class_="name"),
        tag("span", tag("span", class_=f"fill {item.kind}".strip(), style=f"width:{share:.2f}%"), class_="track"),
        tag("span", item.said, class_="said"),
        class_="bar",
    )


def columns(items: Sequence[Bar], first: str, last: str) -> Html:
    """Columns side by side, each with its words as a tooltip; `first` and `last` stand below the ends."""
    largest = max((item.value for item in items), default=0) or 1
    step = _WIDTH / max(1, len(items))
    gap = min(4.0, step * 0.15)
    drawn = []
    for at, item in enumerate(items):
        height = max(2.0, _HEIGHT * item.value / largest) if item.value else 0.0
        rect = tag(
            "rect",
            tag("title", f"{item.name}: {item.said}"),
            x=f"{at * step + gap / 2:.2f}",
            y=f"{_HEIGHT - height:.2f}",
            width=f"{step - gap:.2f}",
            height=f"{height:.2f}",
            class_=item.kind or "plain",
        )
        drawn.append(rect)
    top = next((item.said for item in items if item.value == largest), "")
    return tag(
        "div",
        tag("div", tag("span", top, class_="top"), _svg(*drawn), class_="plot"),
        tag("div", tag("span", first), tag("span", last), class_="axis"),
        class_="columns",
    )


def histogram(counts: Mapping[str, int], unit: str = "rows") -> Html:
    """Columns with the name of each below it; empty ones at the end are left out."""
    items = [Bar(name, count, f"{count:,} {unit}") for name, count in counts.items()]
    while len(items) > 1 and not items[-1].value:
        items.pop()
    largest, total = max(counts.values(), default=0) or 1, sum(counts.values()) or 1
    cells = []
    for item in items:
        height = max(1.5, 100 * item.value / largest) if item.value else 0
        column = tag(
            "span",
            tag("span", class_="fill", style=f"height:{height:.2f}%"),
            class_="track",
            title=f"{item.name}: {item.said} ({item.value / total:.1%})",
        )
        said = tag("span", compact(item.value) if item.value else "", class_="count")
        cells.append(tag("div", said, column, tag("span", item.name, class_="name"), class_="column"))
    return tag("div", *cells, class_="histogram")


def line(segments: Sequence[Sequence[tuple[float, float]]], said: Callable[[float], str], last: str) -> Html:
    """Values over time, both from 0; each segment is a line of its own. `said` names a value, `last` the last time."""
    points = [point for segment in segments for point in segment]
    top = nice(max((value for _, value in points), default=0.0))
    end = max((at for at, _ in points), default=0.0) or 1.0
    grid = [tag("line", x1=0, x2=_WIDTH, y1=y, y2=y, class_="grid") for y in (0.5, _HEIGHT / 2, _HEIGHT - 0.5)]
    drawn = [_path(segment, end, top) for segment in segments if segment]
    return tag(
        "div",
        tag(
            "div",
            tag("span", said(top), class_="top"),
            tag("span", said(top / 2), class_="middle"),
            _svg(*grid, *drawn),
            class_="plot",
        ),
        tag("div", tag("span", "0"), tag("span", last), class_="axis"),
        class_="line",
    )


def _path(segment: Sequence[tuple[float, float]], end: float, top: float) -> Html:
    places = [(_WIDTH * at / end, _HEIGHT * (1 - value / top)) for at, value in segment]
    curve = " ".join(f"{'M' if n == 0 else 'L'}{x:.1f} {y:.1f}" for n, (x, y) in enumerate(places))
    area = f"{curve} L{places[-1][0]:.1f} {_HEIGHT} L{places[0][0]:.1f} {_HEIGHT} Z"
    return joined(tag("path", d=area, class_="area"), tag("path", d=curve, class_="curve"))


def _svg(*children: Html) -> Html:
    """A picture that is stretched to its place."""
    return tag("svg", *children, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", preserveAspectRatio="none", role="img")


def nice(value: float) -> float:
    """The next round number above a value."""
    if value <= 0:
        return 1.0
    unit: float = 10.0 ** math.floor(math.log10(value))
    return next(step * unit for step in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * unit >= value * 0.999)


def compact(value: Number) -> str:
    """A number in a few letters: 1234 is 1.2k."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.{0 if value >= 100 * size else 1}f}{letter}"
    return f"{value:,.0f}"
