"""CSV, read only: every value as text, or by `input.schema`."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from dolly_batch.config.tables import ReadableTable
from dolly_batch.errors import InputError
from dolly_batch.spark.files import literal_path
from dolly_batch.spark.tables.base import InputFormat
from dolly_batch.spark.tables.columns import quoted_path
from dolly_batch.spark.tables.csv_lines import NO_HEADER, check_lines, first_lines, read_names, rows_of
from dolly_batch.spark.tables.lines import ascii_encoding, declared, is_on, read_lines, reader_options

LATIN = "ISO-8859-1"
MAX_COLUMNS = 20_480
QUOTES = "unescapedquotehandling"


class Csv(InputFormat):
    """CSV files with a header, the same in each file.

    Cells with line breaks and doubled quotes are the rule in tables of text, and Spark's defaults garble both. A line
    with too few or too many cells is an error, where Spark's default fills it with nulls; so is a quote within quotes
    that is not doubled, where its default looks for the cell's end in the lines below.
    """

    name = "csv"
    read_options: ClassVar = {
        "header": "true",
        "multiLine": "true",
        "escape": '"',
        "mode": "FAILFAST",
        "inferSchema": "false",
        "unescapedQuoteHandling": "RAISE_ERROR",
    }
    faults: ClassVar = {
        "ArrayIndexOutOfBounds": "a line has more cells than {key}.options.maxColumns, by default 20480",
        "Unescaped quote character": "a quoted cell holds a quote that is not doubled, or a quote is opened and never "
        "closed; where a backslash stands before such quotes, set {key}.options: {{escape: '\\'}}",
        "does not conform to the schema": "the header is not that of the other files; " + NO_HEADER,
        "MALFORMED": "a line does not have the columns of the header or of {key}.schema (or ends in another way than "
        "the first one), or a value is not of its type; check {key}.options (sep, quote, escape, encoding)",
    }

    def missing(self, config: ReadableTable, key: str) -> str | None:
        """That the first line may be no header. Its cells are not told, for they may be a row's."""
        options = reader_options(self.read_options, config.options)
        if not is_on(options, "header"):
            return None
        return f"it is not in the first line, the header; {NO_HEADER.format(key=key)}"

    def read(self, spark: SparkSession, config: ReadableTable, key: str) -> tuple[DataFrame, int | None]:
        """As every format. The lines of all files are read once for it, without being parsed.

        Raises InputError, which names the file, where its first line is not the header of the others, where the
        header does not hold the columns of the schema, and where a quote is never closed.
        """
        options, path = reader_options(self.read_options, config.options), literal_path(spark, str(config.path))
        lines = rows_of(read_lines(spark, config), options)
        folders = lines.schema.fields[1:]
        encoding, damaged = ascii_encoding(options), False
        if encoding is None:
            options["enforceschema"] = "false"  # Spark then compares the headers itself
            names = _inferred(spark, options, path, folders)
        else:
            first = first_lines(lines, options)
            is_plain = len(options.get("sep", ",")) == 1
            names = read_names(first, options, encoding) if is_plain else _inferred(spark, options, path, folders)
            damaged = check_lines(lines, first, options, encoding, config, key)
        columns = _columns(config, key, names, folders, has_header=is_on(options, "header"))
        if len(columns) > int(options.get("maxcolumns", MAX_COLUMNS)):
            raise InputError(f"{key} {config.name}: {self.faults['ArrayIndexOutOfBounds'].format(key=key)}")
        options = _bytes_for_letters(options) if damaged else options
        reader = spark.read.format(self.name).options(**options).schema(T.StructType([*columns, *folders]))
        return reader.load(path).withColumns(_mended(columns, of_bytes=damaged)), None


FORMAT = Csv()


def _inferred(
    spark: SparkSession, options: Mapping[str, str], path: str, folders: Sequence[T.StructField]
) -> list[str]:
    """The columns' names as Spark finds them in a file. Quotes that cannot be read are no matter yet."""
    names = spark.read.format("csv").options(**{**options, QUOTES: "STOP_AT_DELIMITER"}).load(path).columns
    return names[: len(names) - len(folders)]


def _columns(
    config: ReadableTable, key: str, names: Sequence[str], folders: Sequence[T.StructField], *, has_header: bool
) -> list[T.StructField]:
    """The columns of the files in their order, typed by the schema: by name where there is a header, else by place."""
    in_folders = {field.name.lower() for field in folders}
    if twice := in_folders & {name.lower() for name in names}:
        raise InputError(
            f"{key} {config.name}: `{min(twice)}` is a column of the files and of the folders' names; rename one"
        )
    given = [field for field in declared(config) if field.name.lower() not in in_folders]
    if config.columns is None:
        return [T.StructField(name, T.StringType()) for name in names]
    if not has_header or not names:
        return given
    by_name = {field.name.lower(): field for field in given}
    if sorted(name.lower() for name in names) != sorted(by_name):
        raise InputError(
            f"{key} {config.name}: the first line is not a header with the columns of {key}.schema "
            f"({', '.join(field.name for field in given)}); {NO_HEADER.format(key=key)}"
        )
    return [by_name[name.lower()] for name in names]


def _bytes_for_letters(options: Mapping[str, str]) -> dict[str, str]:
    """The options that read each byte as a letter of its own, whatever it is in UTF-8; so they stand in them too."""
    return {**{name: value.encode().decode("latin-1") for name, value in options.items()}, "encoding": LATIN}


def _mended(columns: Sequence[T.StructField], *, of_bytes: bool) -> dict[str, Column]:
    """Cells to put in the place of others: where they are `of_bytes`, the text that those are, valid UTF-8 or not."""
    mended = {}
    for field in columns if of_bytes else columns[-1:]:
        if isinstance(field.dataType, T.StringType):
            cell = F.col(quoted_path(field.name))
            cell = F.encode(cell, LATIN).cast("string") if of_bytes else cell
            mended[field.name] = _without_return(cell) if field is columns[-1] else cell
    return mended


def _without_return(cell: Column) -> Column:
    """A line's last cell without the `\r` of a line end, which Spark leaves there where a file mixes line ends."""
    stripped = F.nullif(F.rtrim(cell, F.lit("\r")), F.lit(""))
    return F.when(cell.endswith("\r"), stripped).otherwise(cell)
