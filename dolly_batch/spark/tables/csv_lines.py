"""The lines of CSV files before they are parsed: other headers, quotes that are never closed, bytes that are no text.

One pass, in which Spark counts and compares; no line leaves the executors.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

from dolly_batch.config.tables import ReadableTable
from dolly_batch.errors import InputError
from dolly_batch.spark.files import plain_name
from dolly_batch.spark.tables.lines import LINE, is_damaged, is_on

NUM_FIRST = 50  # A header may have line breaks.
NO_HEADER = "where no file has a header, set {key}.options: {{header: 'false'}}"


def rows_of(lines: DataFrame, options: Mapping[str, str]) -> DataFrame:
    """The lines without comments."""
    comment = options.get("comment")
    return lines.filter(~F.col(LINE).startswith(comment)) if comment else lines


def first_lines(lines: DataFrame, options: Mapping[str, str]) -> list[Row]:
    """The lines that one of the files begins with, as `hash`, by which headers are compared, and `bytes`."""
    begin = lines.filter(F.col("_metadata.file_block_start") == 0)
    return (
        begin.select(_hash(options).alias("hash"), F.col(LINE).cast("binary").alias("bytes")).limit(NUM_FIRST).collect()
    )


def read_names(first: Sequence[Row], options: Mapping[str, str], encoding: str) -> list[str]:
    """The columns' names, as Spark has them: `_c1` where the header has none, two equal ones with their places.

    Not by Spark, which takes the name of a file for a pattern when it looks for columns.
    """
    quote, escape = options.get("quote", '"'), options.get("escape", "\\")
    cells = next(
        csv.reader(
            (bytes(row.bytes).decode(encoding, "replace") + "\n" for row in first),
            delimiter=options.get("sep", ","),
            quotechar=quote or None,
            quoting=csv.QUOTE_MINIMAL if quote else csv.QUOTE_NONE,
            doublequote=escape == quote,
            escapechar=escape if escape and escape != quote else None,
        ),
        [],
    )
    if not is_on(options, "header"):
        return [f"_c{i}" for i in range(len(cells))]
    num_named = Counter(cell.lower() for cell in cells)
    blank = ("", options.get("nullvalue", ""))
    return [
        f"_c{i}" if cell in blank else f"{cell}{i}" if num_named[cell.lower()] > 1 else cell
        for i, cell in enumerate(cells)
    ]


def check_lines(
    lines: DataFrame, first: Sequence[Row], options: Mapping[str, str], encoding: str, config: ReadableTable, key: str
) -> bool:
    """Raise InputError for files that begin with another line than the first one, and for quotes that stay open.

    Returns whether the files hold bytes that are not UTF-8, which they are to be read as.
    """
    is_other = _differs(first[0], options) if first and is_on(options, "header") else F.lit(False)
    found = _found(lines, is_other, _Quotes.of(options), encoding)
    if others := sorted({row.file for row in found if row.is_other}):
        raise InputError(
            f"{key} {config.name}: {_listed(others)} not begin with the header of the other files, with its columns in "
            f"its order; {NO_HEADER.format(key=key)}, else split the input into tables"
        )
    if is_on(options, "multiline") and (opened := _unclosed(found)):
        raise InputError(
            f"{key} {config.name}: a quote is opened in {', '.join(opened[:3])} and never closed, so that all lines "
            f"below it would be one cell; correct it, or set {key}.options: {{quote: ''}} where quotes are only text"
        )
    return any(row.num_damaged for row in found)


def _listed(files: Sequence[str]) -> str:
    more = f" and {len(files) - 3} other files do" if len(files) > 3 else " do" if len(files) > 1 else " does"
    return ", ".join(files[:3]) + more


@dataclass(frozen=True)
class _Quotes:
    """How a line's quotes are counted."""

    sep: str
    quote: str
    escape: str

    @classmethod
    def of(cls, options: Mapping[str, str]) -> "_Quotes":
        return cls(options.get("sep", ","), options.get("quote", '"'), options.get("escape", "\\"))

    def are_odd(self) -> Column:
        """Whether a line has an odd number of them, so that a cell begins or ends within it."""
        if not self.quote:
            return F.lit(False)
        line = F.col(LINE)
        if self.escape and self.escape != self.quote:
            line = F.regexp_replace(line, F.lit(re.escape(self.escape) + "."), F.lit(""))
        removed = F.octet_length(line) - F.octet_length(F.replace(line, F.lit(self.quote), F.lit("")))
        return removed % (2 * len(self.quote.encode())) != 0

    def stay_open(self) -> Column:
        """Whether a quote that begins a cell is not closed on the line."""
        quote, sep = re.escape(self.quote), re.escape(self.sep)
        rest = f"[^{quote}]*+"
        return F.col(LINE).rlike(f"(?:^|{sep}){quote}{rest}(?:{quote}{quote}{rest})*+$")


def _differs(header: Row, options: Mapping[str, str]) -> Column:
    """Whether a line is another header. One much longer is, even with quotes around every letter: it is not hashed."""
    is_short = F.octet_length(LINE) <= 3 * len(header.bytes) + 3
    return F.when(is_short, _hash(options) != F.lit(header.hash)).otherwise(True)


def _hash(options: Mapping[str, str]) -> Column:
    """A line's hash without its quotes and in small letters: names are the same in either case, and quoted or not."""
    quote = options.get("quote", '"')
    return F.xxhash64(F.lower(F.replace(F.col(LINE), F.lit(quote), F.lit("")) if quote else F.col(LINE)))


def _found(lines: DataFrame, is_other: Column, quotes: _Quotes, encoding: str) -> list[Row]:
    """What there is to say of each block of each file.

    An aggregate of numbers keeps no lines: the place of a line within its block is doubled, to make room for a bit.
    """
    block = F.col("_metadata.file_block_start")
    place = F.monotonically_increasing_id() * 2
    odd = F.col("odd")
    marked = lines.select(
        F.col("_metadata.file_path").alias("file"),
        block.alias("block"),
        F.when(block == 0, place + is_other.cast("int")).alias("first"),
        F.when(quotes.are_odd(), place + quotes.stay_open().cast("int")).alias("odd"),
        is_damaged(F.col(LINE), encoding).alias("damaged"),
    )
    of_blocks = marked.groupBy("file", "block").agg(
        F.coalesce(F.min("first") % 2 == 1, F.lit(False)).alias("is_other"),
        F.count(odd).alias("num_odd"),
        (F.max(odd) % 2 == 1).alias("is_open"),
        F.count_if("damaged").alias("num_damaged"),
    )
    found = of_blocks.filter("is_other OR num_odd > 0 OR num_damaged > 0").collect()
    return [Row(**{**row.asDict(), "file": plain_name(row.file)}) for row in found]


def _unclosed(found: Iterable[Row]) -> list[str]:
    """The files with an odd number of quotes, whose last line with an odd number opens a cell."""
    blocks: dict[str, list[Row]] = {}
    for row in sorted(found, key=lambda row: row.block):
        if row.num_odd:
            blocks.setdefault(row.file, []).append(row)
    return sorted(
        file for file, rows in blocks.items() if sum(row.num_odd for row in rows) % 2 == 1 and rows[-1].is_open
    )
