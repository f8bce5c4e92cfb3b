"""The lines of text files as bytes, below CSV and JSON: what Spark's readers of those pass over shows here."""

import codecs
from collections.abc import Mapping

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from dolly_batch.config.tables import ReadableTable
from dolly_batch.spark.files import literal_path

LINE = "__line"
# Options that say which files are read, and where a line ends.
_OF_FILES = (
    *("pathglobfilter", "recursivefilelookup", "modifiedbefore", "modifiedafter", "basepath"),
    *("ignorecorruptfiles", "ignoremissingfiles", "linesep"),
)
_ALIASES = {"delimiter": "sep", "charset": "encoding"}


def reader_options(*options: Mapping[str, str]) -> dict[str, str]:
    """Options of Spark's readers under one name each, in small letters; the later ones override."""
    named = ((name.lower(), value) for some in options for name, value in some.items())
    found = {_ALIASES.get(name, name): value for name, value in named}
    if found.get("sep") == "\\t":  # as Spark lets it be written
        found["sep"] = "\t"
    return found


def is_on(options: Mapping[str, str], name: str) -> bool:
    """Whether an option is `true`."""
    return options.get(name, "false").lower() == "true"


def ascii_encoding(options: Mapping[str, str]) -> str | None:
    """The encoding of the files, in capital letters, where its lines, quotes and separators are ASCII's bytes."""
    name = options.get("encoding", "UTF-8")
    try:
        return name.upper() if codecs.encode('a,"\n', name) == b'a,"\n' else None
    except LookupError:  # one that Java knows, or will refuse
        return None


def read_lines(spark: SparkSession, config: ReadableTable, *, whole: bool = False) -> DataFrame:
    """The lines that are not empty (`whole`: the files) as column `LINE`, then the columns of the folders' names.

    Bytes stay as they are, valid UTF-8 or not; a mark at a file's start is not part of it. The folders' columns are
    text, or of the type that the table's `schema` gives them: Spark by itself would guess (`code=007` is 7).
    """
    options = {name: value for name, value in reader_options(config.options).items() if name in _OF_FILES}
    path = literal_path(spark, str(config.path))
    reader = spark.read.format("text").options(wholetext=str(whole).lower(), **options)
    columns = [T.StructField(LINE, T.StringType())]
    lines = reader.schema(T.StructType(columns)).load(path)
    folders = lines.schema.fields[1:]
    if folders:
        given = {field.name.lower(): field for field in declared(config)}
        columns += [given.get(field.name.lower(), T.StructField(field.name, T.StringType())) for field in folders]
        lines = reader.schema(T.StructType(columns)).load(path)
    return lines.filter(F.octet_length(F.col(LINE)) > 0)


def declared(config: ReadableTable) -> list[T.StructField]:
    """The columns of the table's `schema`, none where it has none."""
    schema = None if config.columns is None else T.StructType.fromDDL(config.columns)
    return schema.fields if isinstance(schema, T.StructType) else []


def is_damaged(text: Column, encoding: str | None) -> Column:
    """Whether a text that ought to be UTF-8 is not."""
    return ~F.is_valid_utf8(text) if encoding == "UTF-8" else F.lit(False)
