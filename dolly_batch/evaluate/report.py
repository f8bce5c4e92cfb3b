"""An evaluation's numbers: what is said at its end, and its JSON."""

import json
from dataclasses import dataclass, field, fields
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dolly_batch.evaluate.table import Table

_WIDTH = 160  # a table of numbers whose cells are broken is worse than lines that are


@dataclass
class EvaluateReport:
    """One evaluation, in numbers. `benchmarks` and `quality` hold the rows of the Parquet tables of these names."""

    name: str
    outcome: str = "started"
    exit_code: int = 5
    message: str = ""
    output: str | None = None
    model: str | None = None
    model_revision: str | None = None
    card_model: str | None = None
    benchmarks: list[dict[str, Any]] = field(default_factory=list)
    quality: list[dict[str, Any]] = field(default_factory=list)
    model_loads: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time by stage: session, score, quality."""
    tables: list[Table] = field(default_factory=list, repr=False)

    def to_json(self) -> str:
        """One line of JSON; without the tables, which say the same for people."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "tables"}
        return json.dumps(values, sort_keys=True)


def print_evaluation(report: EvaluateReport) -> None:
    """The end of an evaluation, for a person: its tables, but for those too long for a terminal."""
    console = Console(highlight=False)
    console = console if console.width >= _WIDTH else Console(highlight=False, width=_WIDTH)
    for table in report.tables:
        if table.is_long:
            console.print(Text(f"{table.title}: {len(table.rows):,} lines, in {report.output}/results.md\n"))
            continue
        shown = RichTable(*table.header, title=table.title, title_justify="left", box=None, pad_edge=False)
        for column in shown.columns[1:]:
            column.justify = "right"
        for row in table.rows:
            shown.add_row(*(Text(cell) for cell in row))
        console.print(shown)
        console.print()
    console.print(Text(report.message))
    if report.output:
        console.print(Text(f"output: {report.output}"))
