"""The table formats, and what a job may ask of each; settings are checked by this file alone, without pyspark.

To add a format, write a module `spark/tables/NAME.py` whose `FORMAT` is an `InputFormat` or an `OutputFormat`, and add
its line here. The module is imported when a job uses the format.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class FormatFacts:
    """What a job may ask of tables of one format."""

    name: str
    modes: tuple[str, ...] = ()
    """The values of `output.mode` that it can be published in; none for a format that is only read."""
    in_catalog: bool = False
    """Whether the output may be a catalog table, and not only a folder."""
    takes_schema: bool = False
    """Whether `input.schema` says the types of its columns; other formats store them."""

    @property
    def replaces_rows(self) -> bool:
        """Whether a commit can replace rows of the table, as mode merge and `--retry` do."""
        return "merge" in self.modes


_ALL = (
    FormatFacts("parquet", modes=("append", "overwrite")),
    FormatFacts("delta", modes=("append", "overwrite", "merge"), in_catalog=True),
    FormatFacts("json", takes_schema=True),
    FormatFacts("csv", takes_schema=True),
)
FORMATS = {facts.name: facts for facts in _ALL}


def listed(names: Iterable[str], conjunction: str = "or") -> str:
    """Names as text: `a, b or c`."""
    *others, last = names
    return f"{', '.join(others)} {conjunction} {last}" if others else last
