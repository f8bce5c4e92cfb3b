"""CSV, read only: every value as text, or by `input.schema`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from dolly_batch.config.job import ReadableTable
from dolly_batch.errors import InputError
from dolly_batch.spark.files import literal_path
from dolly_batch.spark.tables.base import InputFormat
from dolly_batch.spark.tables.columns import quoted_path
from dolly_batch.spark.tables.csv_lines import NO_HEADER, check_lines
from dolly_batch.spark.tables.lines import ascii_encoding, declared, is_on, read_lines, reader_options

LATIN = "ISO-8859-1"


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
        options = reader_options(self.read_options, config.options)
        lines = read_lines(spark, config)
        damaged = check_lines(lines, options, config, key)
        if ascii_encoding(options) is None:
            options["enforceschema"] = "false"  # Spark then compares the headers itself
        folders = lines.schema.fields[1:]
        names = _names(spark, options, config, key, folders)
        columns = _columns(config, key, names, folders, has_header=is_on(options, "header"))
        options = _bytes_for_letters(options) if damaged else options
        reader = spark.read.format(self.name).options(**options).schema(T.StructType([*columns, *folders]))
        df = reader.load(literal_path(spark, str(config.path)))
        return df.select(*_cells(columns, of_bytes=damaged), *(quoted_path(field.name) for field in folders)), None


FORMAT = Csv()


def _names(
    spark: SparkSession, options: Mapping[str, str], config: ReadableTable, key: str, folders: Sequence[T.StructField]
) -> list[str]:
    """The names of the columns in the first file, as Spark has them: `_c1` where the header has none."""
    # Quotes that cannot be read are no matter yet, and those of folders' names are no columns of the file.
    lenient = {**options, "unescapedquotehandling": "STOP_AT_DELIMITER"}
    if folders:
        lenient["recursivefilelookup"] = "true"
    names = spark.read.format("csv").options(**lenient).load(literal_path(spark, str(config.path))).columns
    if twice := {name.lower() for name in names} & {field.name.lower() for field in folders}:
        raise InputError(
            f"{key} {config.name}: `{min(twice)}` is a column of the files and of the folders' names; rename one"
        )
    return list(names)


def _columns(
    config: ReadableTable, key: str, names: Sequence[str], folders: Sequence[T.StructField], *, has_header: bool
) -> list[T.StructField]:
    """The columns of the files in their order, typed by the schema: by name where there is a header, else by place."""
    in_folders = {field.name.lower() for field in folders}
    given = [field for field in declared(config) if field.name.lower() not in in_folders]
    if config.columns is None:
        return [T.StructField(name, T.StringType()) for name in names]
    if not has_header:
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


def _cells(columns: Sequence[T.StructField], *, of_bytes: bool) -> Iterator[Column]:
    """The cells; where they are `of_bytes`, the text that those are, valid UTF-8 or not."""
    for field in columns:
        cell = F.col(quoted_path(field.name))
        if isinstance(field.dataType, T.StringType):
            cell = F.encode(cell, LATIN).cast("string") if of_bytes else cell
            cell = _without_return(cell) if field is columns[-1] else cell
        yield cell.alias(field.name)


def _without_return(cell: Column) -> Column:
    """A line's last cell without the `\r` of a line end, which Spark leaves there where a file mixes line ends."""
    stripped = F.nullif(F.rtrim(cell, F.lit("\r")), F.lit(""))
    return F.when(cell.endswith("\r"), stripped).otherwise(cell)
