"""Common beginnings of prompts: an engine computes them once for rows that it runs at the same time.

So rows that begin alike (the same product, policy or document; a template whose first column repeats) are laid out
together. How many characters must be alike is chosen by counting: for a few lengths, how many rows are so long, and how
many different beginnings they have.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from dolly_batch.spark.plan.distinct import count_distinct

# Characters behind what all rows begin with.
LENGTHS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
MIN_ROWS = 128
"""Fewer rows run nearly all at once, whatever their order."""
ROWS_AT_ONCE = 128
"""About as many rows as an engine runs, whose beginnings it can share."""
MIN_GAIN = 0.05
"""Of all characters: rows of about one length are not mixed with others for less."""
_SAMPLE_ROWS = 64
_SAMPLE_CHARS = 16_384


@dataclass(frozen=True)
class Beginning:
    """Rows are laid out together when `num_chars` characters behind their first `offset` are the same."""

    offset: int
    num_chars: int

    def group(self) -> Column:
        """A hash of a row's beginning."""
        return F.xxhash64(F.substring(_text(), self.offset + 1, self.num_chars))


@dataclass(frozen=True)
class Length:
    """Counted at one length: rows that are so long, and how many beginnings of that length they have."""

    num_chars: int
    num_rows: int
    num_distinct: int


@dataclass(frozen=True)
class Sharing:
    """What is known of the rows' beginnings. `share` is about which part of the prompts is computed once for many."""

    beginning: Beginning | None = None
    share: float = 0.0


def find_sharing(questions: DataFrame, num_questions: int, num_shards: int) -> Sharing:
    """Choose by which beginning rows of `instruction` and `context` are laid out, None where it gains too little."""
    if num_questions < MIN_ROWS:
        return Sharing()
    sample = questions.select("request_key", F.substring(_text(), 1, _SAMPLE_CHARS).alias("text"))
    texts = [row[1] for row in sample.orderBy("request_key").limit(_SAMPLE_ROWS).collect()]  # a hash: at random
    offset = _num_common(texts)
    lengths, num_chars = _counted(questions, offset)
    return choose_sharing(lengths, offset, num_questions, num_chars, max(num_shards, num_questions / ROWS_AT_ONCE))


def choose_sharing(lengths: Sequence[Length], offset: int, num_rows: int, num_chars: int, num_parts: float) -> Sharing:
    """The best of the lengths for rows that run in `num_parts` parts, each with one engine and about at one time."""
    of_all = offset * (num_rows - min(num_parts, num_rows))
    scattered = of_all + _shared_chars(lengths, None, num_parts)
    best = max(lengths, key=lambda at: _shared_chars(lengths, at, num_parts), default=None)
    together = scattered if best is None else of_all + _shared_chars(lengths, best, num_parts)
    if best is None or together - scattered < MIN_GAIN * num_chars:
        return Sharing(None, scattered / max(1, num_chars))
    return Sharing(Beginning(offset, best.num_chars), together / num_chars)


def _shared_chars(lengths: Sequence[Length], grouped: Length | None, num_parts: float) -> float:
    """Characters that are not computed again when rows alike in their first `grouped` characters run together."""
    total, before = 0.0, 0
    for at in lengths:
        if not at.num_distinct:
            break
        items, parts = at.num_rows / at.num_distinct, num_parts  # how many are strewn over how many parts
        if grouped is not None and grouped.num_distinct and at.num_chars < grouped.num_chars:
            items = max(1.0, grouped.num_distinct / at.num_distinct)
        elif grouped is not None and grouped.num_distinct:
            parts = max(1.0, grouped.num_rows / grouped.num_distinct / ROWS_AT_ONCE)
        num_computed = at.num_distinct * _parts_met(items, parts)
        total += (at.num_chars - before) * max(0.0, at.num_rows - num_computed)
        before = at.num_chars
    return total


def _parts_met(num_items: float, num_parts: float) -> float:
    """How many of the parts hold one of so many items, each put into a part at random."""
    if num_parts <= 1:
        return 1.0
    return num_parts * float(1.0 - (1.0 - 1.0 / num_parts) ** num_items)


def _counted(questions: DataFrame, offset: int) -> tuple[list[Length], int]:
    """The counts by length, and the characters of all prompts."""
    text = F.col("text")
    begins = [
        F.when(F.length(text) >= offset + num_chars, F.xxhash64(F.substring(text, offset + 1, num_chars)))
        for num_chars in LENGTHS
    ]
    *counts, (_, num_chars) = count_distinct(questions.select(_text().alias("text")), begins, [F.length(text)])
    return [Length(length, *count) for length, count in zip(LENGTHS, counts, strict=True)], num_chars


def _num_common(texts: Sequence[str]) -> int:
    """With how many of the same characters all of the texts begin."""
    first, last = min(texts), max(texts)  # of sorted texts, these two differ first
    return next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))


def _text() -> Column:
    """What a prompt is made of, in its order."""
    return F.concat_ws("\0", "instruction", "context")
