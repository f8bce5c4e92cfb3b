"""An evaluation's numbers."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from dolly_batch.evaluate.table import Table
from dolly_batch.report import BaseReport


@dataclass
class EvaluateReport(BaseReport):
    """One evaluation. `benchmarks` and `quality` hold the rows of the Parquet tables of these names.

    Its stages are session, score and quality.
    """

    card_model: str | None = None
    benchmarks: list[dict[str, Any]] = field(default_factory=list)
    quality: list[dict[str, Any]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list, repr=False)
    """The same as tables for people; not part of the JSON."""

    def to_json(self) -> str:
        """One line of JSON, without the tables."""
        values = asdict(self)
        del values["tables"]
        return json.dumps(values, sort_keys=True)
