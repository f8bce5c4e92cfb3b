"""One row of `tiny`'s training and test texts."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """An instruction with its right answer, as in databricks-dolly-15k; `context` is empty where there is none."""

    instruction: str
    context: str
    response: str
    category: str
