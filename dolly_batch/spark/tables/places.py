"""Where input, output and work folder lie: none may be lost by what a run does to another."""

import os
import posixpath
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlparse

from pyspark.sql import SparkSession

from dolly_batch.errors import OutputError
from dolly_batch.spark.files import files_for
from dolly_batch.spark.local_files import mounted

if TYPE_CHECKING:
    from dolly_batch.spark.tables.output import OutputTable

_LETTERS_OF_PATTERNS = {*"*?[{"}
_PART = r"(?:[A-Za-z0-9_]+|`(?:[^`]|``)+`)"
_NAME = re.compile(rf"{_PART}(\.{_PART}){{0,2}}")


def name_parts(table: str) -> list[str]:
    """The parts of a catalog table's name, as it is written. Raises OutputError, with the name to write, for others."""
    if _NAME.fullmatch(table):
        return re.findall(_PART, table)
    parts = [part.strip("`") for part in table.split(".")]
    quoted = ".".join(part if re.fullmatch(r"[A-Za-z0-9_]+", part) else f"`{part}`" for part in parts)
    hint = f"write '{quoted}' if that is what it is called" if all(parts) and len(parts) <= 3 else "a dot too many"
    raise OutputError(
        f"output.table: {table} is no name of a table (catalog.schema.name, with backticks around a part that holds "
        f"more than letters, digits and _): {hint}"
    )


def check_catalog_stays(spark: SparkSession, table: str) -> None:
    """Raise OutputError where this session's own catalog, in memory, would hold the table: it ends with the process."""
    catalog, *rest = name_parts(table)
    is_other = len(rest) == 2 and catalog.strip("`") != "spark_catalog"
    if not is_other and spark.conf.get("spark.sql.catalogImplementation", "in-memory") == "in-memory":
        raise OutputError(
            f"output.table: {table} would stand in a catalog that ends with this run, and no later one would find it; "
            "set spark.conf {spark.sql.catalogImplementation: hive}, or name a folder by output.path"
        )


def refuse_overlaps(spark: SparkSession, target: "OutputTable", inputs: Callable[[], Sequence[str]]) -> None:
    """Raise OutputError where the output holds input files or the work folder, or lies in the input's folder.

    The roots of the tables are compared. `inputs`, which lists every file of the input, is called where it has none, or
    a pattern.
    """
    location = target.path or table_location(spark, str(target.job.output.table))
    work, name, config = _real(files_for(spark, target.job.work_dir)[1]), target.job.output.name, target.job.input
    root = table_location(spark, str(config.table)) if config.path is None else _absolute(spark, config.path)
    root = None if root is None else _real(root)
    if root is not None and _lies_in(work, root):
        raise OutputError(f"work_dir {work} lies in the input's folder; name a folder outside of it")
    if location is None:
        return
    output = _real(location)
    has_root = root is not None and not _LETTERS_OF_PATTERNS & {*root}
    if any(_lies_in(file, output) for file in ([str(root)] if has_root else map(_real, inputs()))):
        raise OutputError(f"the output {name} holds the input's files; name another folder")
    if root is not None and (_lies_in(output, root) or _is_matched(output, root)):
        raise OutputError(f"the output {name} lies in the input's folder; name another one")
    if _lies_in(work, output):
        raise OutputError(f"work_dir {work} lies in the output {name}; name two folders side by side")


def lie_in_one_another(one: "OutputTable", other: "OutputTable") -> bool:
    """Whether two tables are one, by folder or by name, or one's folder lies in the other's."""
    spark, names = one.spark, [table.job.output.table for table in (one, other)]
    if None not in names and len({tuple(name_parts(str(name).lower())[-2:]) for name in names}) == 1:
        return True
    places = [table.path or table_location(spark, str(table.job.output.table)) for table in (one, other)]
    first, second = (None if place is None else _real(place) for place in places)
    return first is not None and second is not None and (_lies_in(first, second) or _lies_in(second, first))


def _absolute(spark: SparkSession, path: str) -> str:
    """A path of the job made absolute. A store's URI is that: Spark may read it where this process has no rights."""
    return files_for(spark, path)[1] if urlparse(path).scheme in ("", "file", "dbfs") else path


def _lies_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _is_matched(path: str, pattern: str) -> bool:
    """Whether a pattern of paths matches a path, or a folder that it lies in."""
    names, patterns = path.split("/"), pattern.split("/")
    return len(names) >= len(patterns) and all(map(fnmatchcase, names, patterns))


def table_location(spark: SparkSession, table: str) -> str | None:
    """Where a catalog table's files lie; None for one that is not there yet, for a view, and where it is not known."""
    if not spark.catalog.tableExists(table) or not _NAME.fullmatch(table):
        return None
    # The name is written out: Delta's parser does not bind parameters, `IDENTIFIER(:name)` among them.
    described = spark.sql(f"DESCRIBE TABLE EXTENDED {table}")
    rows = [(row[0], row[1]) for row in described.collect()]
    details = next((i for i, row in enumerate(rows) if row[0].startswith("# Detailed Table")), len(rows))
    return next((where for what, where in rows[details:] if what == "Location"), None)


def _real(path: str) -> str:
    """A path with its links, `//` and `..` resolved where this process can see it, else normalised as text."""
    parsed = urlparse(path)
    plain = unquote(f"{parsed.scheme}:{parsed.path}") if parsed.scheme else path
    if (found := mounted(plain)) is not None:
        return str(found[0].plain(found[1]))
    if parsed.scheme in ("", "file"):
        return os.path.realpath(plain.removeprefix("file:"))
    return f"{parsed.scheme}://{parsed.netloc}{posixpath.normpath(parsed.path)}"
