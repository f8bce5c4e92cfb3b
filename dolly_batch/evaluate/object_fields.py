"""The quality of extracted objects: exact match of each field and of the whole object."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dolly_batch.evaluate.accuracy import Accuracy, share_of


@dataclass
class FieldCounts:
    """Counts over rows; those of several parts of a table add up.

    A field counts in the rows where gold or prediction holds it and is not null there, or gold names it as null.
    """

    num_rows: int = 0
    num_unanswered: int = 0
    num_whole: int = 0
    num_seen: Counter[str] = field(default_factory=Counter)
    num_equal: Counter[str] = field(default_factory=Counter)

    def add(self, gold: Mapping[str, Any], prediction: Mapping[str, Any] | None) -> None:
        """Count one row. Without a prediction, no field of it is right."""
        self.num_rows += 1
        self.num_unanswered += prediction is None
        predicted = prediction or {}
        names = {*gold, *(name for name, value in predicted.items() if value is not None)}
        equal = {name for name in names if prediction is not None and same(gold.get(name), predicted.get(name))}
        self.num_seen.update(names)
        self.num_equal.update(equal)
        self.num_whole += equal == names and prediction is not None

    def merge(self, other: "FieldCounts") -> None:
        """Add the counts of another part of the table."""
        self.num_rows += other.num_rows
        self.num_unanswered += other.num_unanswered
        self.num_whole += other.num_whole
        self.num_seen.update(other.num_seen)
        self.num_equal.update(other.num_equal)

    def to_json(self) -> str:
        """The counts, to be sent from an executor."""
        return json.dumps(
            [self.num_rows, self.num_unanswered, self.num_whole, dict(self.num_seen), dict(self.num_equal)]
        )

    @classmethod
    def from_json(cls, text: str) -> "FieldCounts":
        """The counts of `to_json`."""
        num_rows, num_unanswered, num_whole, num_seen, num_equal = json.loads(text)
        return cls(num_rows, num_unanswered, num_whole, Counter(num_seen), Counter(num_equal))

    @property
    def whole(self) -> Accuracy:
        """The share of rows that are right in all fields."""
        return share_of(self.num_whole, self.num_rows)

    @property
    def fields(self) -> dict[str, Accuracy]:
        """The share of rows in which a field is right, by its name."""
        return {name: share_of(self.num_equal[name], count) for name, count in sorted(self.num_seen.items())}


def parse_object(text: str | None) -> dict[str, Any] | None:
    """The JSON object in a cell; None for a null cell, for text that is no JSON, and for JSON that is no object."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def same(gold: object, prediction: object) -> bool:
    """Whether two JSON values are equal: 1 and 1.0 are, 1 and true are not, a missing key and null are."""
    if isinstance(gold, bool) or isinstance(prediction, bool):
        return gold is prediction
    if isinstance(gold, list) and isinstance(prediction, list):
        return len(gold) == len(prediction) and all(map(same, gold, prediction))
    if isinstance(gold, dict) and isinstance(prediction, dict):
        return all(same(gold.get(key), prediction.get(key)) for key in {*gold, *prediction})
    return gold == prediction
